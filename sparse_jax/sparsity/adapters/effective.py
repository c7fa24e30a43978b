"""What a pruned kernel and the leaves beside it compute together."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from sparse_jax.ops import MaskMode
from sparse_jax.sparsity import masks as masks_lib
from sparse_jax.sparsity.adapters.leaves import (
    KERNEL,
    SCALE,
    Adapter,
    S,
    X,
    attach,
    check,
    nodes,
    split,
)
from sparse_jax.tree import from_paths, leaf_paths
from sparse_jax.types import Masks, Params


def effective_params(
    params: Params, masks: Masks, *, mode: MaskMode = "fixed"
) -> Params:
    """The plain weights that the model multiplies by.

        W_eff = scale * effective_weight(W, m, mode) + X S

    where what is absent counts as 1 and 0. The other leaves pass through; without
    adapter leaves this is `masks.apply`. Differentiable in W, scale, S and X.

    Args:
      params: weights and adapter leaves.
      masks: True = kept, None = dense; adapter leaves have None, or no entry.
      mode: see `ops.effective_weight`.

    Raises:
      InputError: an adapter leaf does not fit its kernel.

    Example:
      >>> effective_params(
      ...     {"up": {"kernel": jnp.ones((2, 1)), "slorb_s": jnp.full((1, 1), 0.5)}},
      ...     {"up": {"kernel": jnp.array([[True], [False]]), "slorb_s": None}},
      ... )["up"]["kernel"].tolist()
      [[1.5], [0.5]]
    """
    plain, adapter = split(params)
    check({path: leaf.shape for path, leaf in leaf_paths(params).items()})
    weights = leaf_paths(masks_lib.apply(plain, split(masks)[0], mode=mode))
    for node in nodes(adapter):
        path = f"{node}/{KERNEL}"
        scale, s, x = (adapter.get(f"{node}/{name}") for name in (SCALE, S, X))
        if scale is not None:
            weights[path] = _scaled(weights[path], scale)
        if s is not None:
            product = low_rank_product(s, x, weights[path].shape[-2])
            weights[path] = weights[path] + product.astype(weights[path].dtype)
    return from_paths(weights)


def low_rank_product(
    s: Float[Array, "*L r out"], x: Float[Array, "*L in r"] | None, n_in: int
) -> Float[Array, "*L in out"]:
    """X S; with x = None the rows of S, each repeated for the inputs of its group."""
    if x is None:
        return jnp.repeat(s, n_in // s.shape[-2], axis=-2)
    return jnp.matmul(x, s)


def fold_scales(params: Params, masks: Masks) -> tuple[Params, Masks]:
    """Multiplies the learned scales into their kernels; zeros stay zeros.

    Returns:
      Params and masks without the scales, which compute the same bits.
    """
    leaves = leaf_paths(params)
    _, adapter = split(params)
    scales = [path for path in adapter if path.endswith(f"/{SCALE}")]
    for path in scales:
        kernel = path.removesuffix(SCALE) + KERNEL
        leaves[kernel] = _scaled(leaves[kernel], leaves.pop(path))
    mask_leaves = leaf_paths(masks)
    kept = {path: mask for path, mask in mask_leaves.items() if path not in scales}
    return from_paths(leaves), from_paths(kept)


def merge(params: Params, adapter: Adapter) -> Params:
    """Plain, dense weights that compute what pruned weights and their adapter do.

    Args:
      params: plain weights, pruned ones at zero.
      adapter: see `split`.

    Raises:
      InputError: as `attach`.
    """
    whole = attach(params, adapter)
    return effective_params(whole, from_paths(dict.fromkeys(leaf_paths(whole))))


def _scaled(
    w: Float[Array, "*L in out"], scale: Float[Array, "*L 2 out"]
) -> Float[Array, "*L in out"]:
    """Each half of the inputs times its scale."""
    # A choice by index, not a reshape: a sharded `in` stays as it is.
    first = (jnp.arange(w.shape[-2]) < w.shape[-2] // 2)[:, None]
    chosen = jnp.where(first, scale[..., :1, :], scale[..., 1:, :])
    return w * chosen.astype(w.dtype)
