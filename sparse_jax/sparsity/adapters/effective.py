"""What a pruned kernel and the leaves beside it compute together."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from sparse_jax.ops import MaskMode, effective_weight
from sparse_jax.quant import Grid, GridConfig
from sparse_jax.sparsity.adapters.grids import grid_of, rounded
from sparse_jax.sparsity.adapters.leaves import (
    KERNEL,
    LORA,
    LORA_A,
    LORA_B,
    LORA_SCALE,
    OUTLIER_INDEX,
    OUTLIER_VALUE,
    QUANT_SCALE,
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
from sparse_jax.types import InputError, Masks, Params


def effective_params(
    params: Params,
    masks: Masks,
    *,
    mode: MaskMode = "fixed",
    grid: GridConfig | None = None,
    refit: bool = False,
) -> Params:
    """The plain weights that the model multiplies by.

        W_eff = scale * effective_weight(q(W + alpha / r * A B), m, mode)
                + X S + outliers

    where what is absent counts as 1 and 0, and q rounds to the grid beside the kernel.
    The other leaves pass through; without adapter leaves this is `masks.apply`.
    Differentiable in all leaves of floats.

    Args:
      params: weights and adapter leaves.
      masks: True = kept, None = dense; adapter leaves have None, or no entry.
      mode: see `ops.effective_weight`.
      grid: of all kernels that have a `quant_scale`.
      refit: their scales follow the weights, see `QuantTrainConfig`.

    Raises:
      InputError: an adapter leaf does not fit its kernel, or its grid is not known.

    Example:
      >>> effective_params(
      ...     {"up": {"kernel": jnp.ones((2, 1)), "slorb_s": jnp.full((1, 1), 0.5)}},
      ...     {"up": {"kernel": jnp.array([[True], [False]]), "slorb_s": None}},
      ... )["up"]["kernel"].tolist()
      [[1.5], [0.5]]
    """
    plain, adapter = split(params)
    check({path: leaf.shape for path, leaf in leaf_paths(params).items()})
    mask_leaves, weights = leaf_paths(split(masks)[0]), {}
    for path, kernel in (leaf_paths(plain) | _with_lora(plain, adapter)).items():
        node, mask = path.rpartition("/")[0], mask_leaves[path]
        if path.endswith(f"/{KERNEL}") and f"{node}/{QUANT_SCALE}" in adapter:
            own = _known(grid, adapter, node, kernel.shape[-2])
            options = {"refit": refit, "moving": mode == "straight_through"}
            quantize = functools.partial(rounded, grid=own, mask=mask, **options)
            weights[path] = effective_weight(
                kernel, mask, mode=mode, fake_quant=quantize
            )
        else:
            weights[path] = effective_weight(kernel, mask, mode=mode)
    for node in nodes(adapter):
        path = f"{node}/{KERNEL}"
        weights[path] = _with_terms(weights[path], adapter, node)
    return from_paths(weights)


def _known(grid: GridConfig | None, adapter: Adapter, node: str, n_in: int) -> Grid:
    """The grid beside a kernel.

    Raises:
      InputError: it is not the grid of this configuration, or there is none.
    """
    groups = adapter[f"{node}/{QUANT_SCALE}"].shape[-2]
    if grid is None or groups != grid.groups(n_in):
        raise InputError(
            f"{node}/{QUANT_SCALE}: {groups} groups of {n_in} inputs do not follow "
            f"from the grid {grid}; give the grid that it was made with"
        )
    return grid_of(adapter, node, grid)


def _with_terms(weights: Array, adapter: Adapter, node: str) -> Array:
    """A kernel times its scales, with its low-rank term and its outliers added."""
    names = (SCALE, S, X, OUTLIER_INDEX, OUTLIER_VALUE)
    scale, s, x, index, value = (adapter.get(f"{node}/{name}") for name in names)
    if scale is not None:
        weights = _scaled(weights, scale)
    if s is not None:
        product = low_rank_product(s, x, weights.shape[-2])
        weights = weights + product.astype(weights.dtype)
    if index is not None and value is not None:
        n_in, n_out = weights.shape[-2:]
        weights = weights + outlier_matrix(index, value, (n_in, n_out))
    return weights


def outlier_matrix(
    index: Int[Array, "*L n"], value: Float[Array, "*L n"], shape: tuple[int, int]
) -> Float[Array, "*L in out"]:
    """A matrix [in, out] that is zero but for these values.

    Args:
      index: flat, of the transposed matrix [out, in].
      value: at those places.
      shape: (in, out).

    Example:
      >>> outlier_matrix(jnp.array([1]), jnp.array([5.0]), (2, 3)).tolist()
      [[0.0, 0.0, 0.0], [5.0, 0.0, 0.0]]
    """
    n_in, n_out = shape

    def fill(index_n: Array, value_n: Array) -> Array:
        flat = jnp.zeros(n_in * n_out, value_n.dtype).at[index_n].add(value_n)
        return flat.reshape(n_out, n_in).T

    for _ in range(index.ndim - 1):
        fill = jax.vmap(fill)
    return fill(index, value)


def low_rank_product(
    s: Float[Array, "*L r out"], x: Float[Array, "*L in r"] | None, n_in: int
) -> Float[Array, "*L in out"]:
    """X S; with x = None the rows of S, each repeated for the inputs of its group."""
    if x is None:
        return jnp.repeat(s, n_in // s.shape[-2], axis=-2)
    return jnp.matmul(x, s)


def fold_lora(params: Params, masks: Masks) -> tuple[Params, Masks]:
    """Adds LoRA's masked products to their kernels; zeros stay zeros.

        W <- m * (W + alpha / r * A B)

    Args:
      params: weights and factors.
      masks: True = kept, None = dense.

    Returns:
      Params and masks without the factors, which compute what those with them do.
    """
    plain, adapter = split(params)
    moved = _with_lora(plain, adapter)
    mask_leaves, leaves = leaf_paths(masks), leaf_paths(params)
    for path, kernel in moved.items():
        leaves[path] = effective_weight(kernel, mask_leaves.get(path))
    gone = {path for path in adapter if path.rpartition("/")[2] in LORA}
    return (
        from_paths({path: leaf for path, leaf in leaves.items() if path not in gone}),
        from_paths({p: leaf for p, leaf in mask_leaves.items() if p not in gone}),
    )


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
      InputError: as `attach`; or there are factors of LoRA, whose product has masks.
    """
    whole = attach(params, adapter)
    for path in adapter:
        if path.rpartition("/")[2] in LORA:
            raise InputError(
                f"{path}: merging it without its mask would fill the zeros of a pruned "
                "matrix; fold it with the masks (fold_lora)"
            )
    return effective_params(whole, from_paths(dict.fromkeys(leaf_paths(whole))))


def _with_lora(plain: Params, adapter: Adapter) -> dict[str, Array]:
    """The kernels that have LoRA's factors, by path, with their products added."""
    leaves, found = leaf_paths(plain), {}
    for node in nodes(adapter):
        if f"{node}/{LORA_A}" not in adapter:
            continue
        a, b, scale = (adapter[f"{node}/{n}"] for n in (LORA_A, LORA_B, LORA_SCALE))
        # alpha / r is a constant of the term, and stays one whatever trains.
        scale = jax.lax.stop_gradient(scale)[..., None, None]
        kernel = leaves[f"{node}/{KERNEL}"]
        product = jnp.matmul(scale * a, b)
        found[f"{node}/{KERNEL}"] = kernel + product.astype(kernel.dtype)
    return found


def _scaled(
    w: Float[Array, "*L in out"], scale: Float[Array, "*L 2 out"]
) -> Float[Array, "*L in out"]:
    """Each half of the inputs times its scale."""
    # A choice by index, not a reshape: a sharded `in` stays as it is.
    first = (jnp.arange(w.shape[-2]) < w.shape[-2] // 2)[:, None]
    chosen = jnp.where(first, scale[..., :1, :], scale[..., 1:, :])
    return w * chosen.astype(w.dtype)
