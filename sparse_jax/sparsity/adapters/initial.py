"""Low-rank factors and learned scales as training starts with them."""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding

from sparse_jax import mesh
from sparse_jax.sparsity import masks as masks_lib
from sparse_jax.sparsity.adapters.leaves import (
    KERNEL,
    SCALE,
    Adapter,
    S,
    X,
    attach,
    masks_of,
)
from sparse_jax.tree import leaf_paths
from sparse_jax.types import InputError, Masks, Params


@dataclasses.dataclass(frozen=True, kw_only=True)
class LowRankConfig:
    """A low-rank term beside each pruned matrix, W_eff = m * W + X S.

    X starts as the indicator of groups of consecutive inputs, X[j, i] = 1 where
    j // group = i, so that X S gives all inputs of a group one shared weight per
    output. That weight starts as the mean of what was pruned there,

        S[i, n] = sum of (1 - m) * W over the inputs of group i of column n, / group

    with the zeros of kept entries counted. Source: https://arxiv.org/abs/2407.20584

    Attributes:
      group: k, inputs per group; the rank is in / k, and k divides every `in`.
      trainable_projection: train X too, and store it; else X stays the indicator,
        which costs neither storage nor a matrix product.
      init: of S; "zero" starts at the pruned model.
    """

    group: int = 16
    trainable_projection: bool = False
    init: Literal["mean", "zero"] = "mean"

    def __post_init__(self):
        if self.group < 1:
            raise InputError(f"low_rank.group must be at least 1, found {self.group}")


def add_low_rank(
    params: Params, masks: Masks, config: LowRankConfig, dense: Params | None = None
) -> tuple[Params, Masks]:
    """Adds the factors of `LowRankConfig` to every matrix that has a mask.

    Args:
      params: weights; on a mesh, the factors lie as `mesh.SHARDING_RULES` say.
      masks: the tree of params, True = kept, None = dense.
      config: what to add.
      dense: weights before pruning, for the mean; None = `params`, whose pruned
        entries are then still there.

    Returns:
      Params and masks with the new leaves.

    Raises:
      InputError: the group does not divide the inputs of a matrix, no matrix has a
        mask, there are factors already, or the pruned entries are gone.

    Example:
      >>> kernel = jnp.array([[1.0], [2.0], [3.0], [4.0]])
      >>> params, masks = add_low_rank(
      ...     {"up": {"kernel": kernel}}, {"up": {"kernel": kernel > 2}},
      ...     LowRankConfig(group=2))
      >>> params["up"]["slorb_s"].tolist()
      [[1.5], [0.0]]
    """
    kernels = _masked_kernels(params, masks, S)
    for node, kernel in kernels.items():
        if kernel.shape[-2] % config.group:
            raise InputError(
                f"low_rank.group = {config.group} does not divide the "
                f"{kernel.shape[-2]} inputs of {node}/{KERNEL}; choose a divisor"
            )
    mask_leaves = leaf_paths(masks)
    kept = {node: mask_leaves[f"{node}/{KERNEL}"] for node in kernels}
    if config.init == "mean":
        source = leaf_paths(params if dense is None else dense)
        kernels = {node: source[f"{node}/{KERNEL}"] for node in kernels}
        _check_not_zeroed(kernels, kept)

    def factors(kernels: dict, kept: dict) -> dict[str, jax.Array]:
        made = {}
        for node, kernel in kernels.items():
            *lead, n_in, n_out = kernel.shape
            rank = n_in // config.group
            pruned = jnp.where(kept[node], jnp.zeros_like(kernel), kernel)
            groups = pruned.reshape(*lead, rank, config.group, n_out)
            mean = groups.sum(-2) / config.group
            made[f"{node}/{S}"] = (
                mean if config.init == "mean" else jnp.zeros_like(mean)
            )
            if config.trainable_projection:
                indicator = jnp.repeat(
                    jnp.eye(rank, dtype=kernel.dtype), config.group, 0
                )
                made[f"{node}/{X}"] = jnp.broadcast_to(indicator, (*lead, n_in, rank))
        return made

    return with_leaves(params, masks, placed(factors, kernels, kept))


def add_scales(params: Params, masks: Masks) -> tuple[Params, Masks]:
    """Adds two learned scales per output, both 1, to every matrix that has a mask.

    The first multiplies the weights of the first half of the inputs, the second those
    of the others.

    Args:
      params: weights; on a mesh, scales lie as `mesh.SHARDING_RULES` say.
      masks: the tree of params, True = kept, None = dense.

    Returns:
      Params and masks with the new leaves.

    Raises:
      InputError: a matrix has an odd number of inputs, no matrix has a mask, or there
        are scales already.
    """
    kernels = _masked_kernels(params, masks, SCALE)
    for node, kernel in kernels.items():
        if kernel.shape[-2] % 2:
            raise InputError(
                f"{node}/{KERNEL} has {kernel.shape[-2]} inputs, an odd number; two "
                "learned scales per output need two halves"
            )

    def ones(kernels: dict) -> dict[str, jax.Array]:
        return {
            f"{node}/{SCALE}": jnp.ones((*k.shape[:-2], 2, k.shape[-1]), k.dtype)
            for node, k in kernels.items()
        }

    return with_leaves(params, masks, placed(ones, kernels))


def _masked_kernels(params: Params, masks: Masks, new: str) -> dict[str, Any]:
    """The kernels that have masks, by path of what they are in."""
    leaves, found = leaf_paths(params), {}
    for path, mask in leaf_paths(masks).items():
        node, _, name = path.rpartition("/")
        if name == KERNEL and mask is not None:
            found[node] = leaves[path]
            if f"{node}/{new}" in leaves:
                raise InputError(f"{node}/{new} is there already; add it only once")
    if not found:
        raise InputError(f"masks: no matrix is pruned, so there is no place for {new}")
    return found


def _check_not_zeroed(kernels: dict[str, Any], kept: dict[str, Any]) -> None:
    """The mean of pruned entries needs them; under jit nobody can look."""
    if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(kernels)):
        return
    n_kept, total = masks_lib.count(kept)
    if n_kept < total and not masks_lib.violations(kernels, kept):
        raise InputError(
            "low_rank.init = 'mean' needs the weights before pruning, but all pruned "
            "weights are zero; give the dense parent's, or set init to 'zero'"
        )


def placed(
    make: Callable[..., dict[str, jax.Array]], kernels: dict[str, Any], *others: Any
) -> dict[str, jax.Array]:
    """make(kernels, ...) with its leaves, by path, on the mesh of the kernels."""
    first = next(iter(kernels.values()))
    shardings = None
    if not isinstance(first, jax.core.Tracer) and isinstance(
        getattr(first, "sharding", None), NamedSharding
    ):
        shapes = jax.eval_shape(make, kernels, *others)
        shardings = mesh.shardings(first.sharding.mesh, shapes)
    return jax.jit(make, out_shardings=shardings)(kernels, *others)


def with_leaves(params: Params, masks: Masks, new: Adapter) -> tuple[Params, Masks]:
    """Params and masks with these leaves beside their kernels."""
    whole = attach(params, new)
    return whole, masks_of(whole, masks)
