"""The leaves of adapters: which they are, whether they fit, what they cost."""

from collections.abc import Mapping
from typing import Any

from sparse_jax.sparsity import masks as masks_lib
from sparse_jax.tree import from_paths, leaf_paths
from sparse_jax.types import InputError, Masks, Params, Tree

KERNEL, S, X, SCALE = "kernel", "slorb_s", "slorb_x", "scale"
LORA_A, LORA_B, LORA_SCALE = "lora_a", "lora_b", "lora_scale"
LORA = (LORA_A, LORA_B, LORA_SCALE)
QUANT_SCALE, QUANT_ZERO = "quant_scale", "quant_zero"
OUTLIER_INDEX, OUTLIER_VALUE = "outlier_index", "outlier_value"
OUTLIERS = (OUTLIER_INDEX, OUTLIER_VALUE)

_BESIDE = (
    {S: (), X: (S,), SCALE: (), QUANT_SCALE: (), QUANT_ZERO: (QUANT_SCALE,)}
    | dict.fromkeys(LORA, LORA)
    | dict.fromkeys(OUTLIERS, OUTLIERS)
)
"""Leaf of an adapter -> those that must be beside the same kernel."""

Adapter = Mapping[str, Any]
"""Leaf path -> array, of the leaves that plain params do not have."""


def split(params: Tree) -> tuple[Tree, dict[str, Any]]:
    """Separates the leaves of adapters from the plain tree, of params or of masks.

    Returns:
      The plain tree, and the others by leaf path.

    Example:
      >>> split({"up": {"kernel": 1, "slorb_s": 2}, "norm": {"scale": 3}})
      ({'norm': {'scale': 3}, 'up': {'kernel': 1}}, {'up/slorb_s': 2})
    """
    leaves = leaf_paths(params)
    adapter = {p: leaf for p, leaf in leaves.items() if is_adapter(p, leaves)}
    return from_paths({p: v for p, v in leaves.items() if p not in adapter}), adapter


def attach(params: Tree, adapter: Adapter) -> Tree:
    """Puts an adapter's leaves beside their kernels; the inverse of `split`.

    Raises:
      InputError: a leaf belongs to no kernel, or does not fit it.
    """
    leaves = leaf_paths(params) | dict(adapter)
    check({path: leaf.shape for path, leaf in leaves.items()})
    return from_paths(leaves)


def masks_of(params: Params, masks: Masks) -> Masks:
    """Masks of plain params as those of params with adapter leaves, None for these."""
    return from_paths(leaf_paths(masks) | dict.fromkeys(split(params)[1]))


def storage_bits(
    params: Params,
    masks: Masks,
    *,
    weight_bits: float = 16.0,
    factor_bits: float = 16.0,
    mask_bits: float = 1.0,
) -> dict[str, float]:
    """Bits per original weight of the pruned matrices, with all that they need.

    S has in / k * out entries, 1 / k of the dense matrix: at k = 16 that is 1/8 of what
    2:4 keeps. A stored X has in * in / k more, so that the two take 2 / k of a square
    matrix, 1/4 of what 2:4 keeps; the indicator takes nothing. Learned scales and
    LoRA's factors are folded into the weights at the end, and take nothing either.

    Args:
      params: weights and factors.
      masks: True = kept; matrices with neither mask nor factors are left out.
      weight_bits: of a kept weight.
      factor_bits: of an entry of S and X.
      mask_bits: per original weight. 1 is a bitmap, and also the two bits per kept
        weight of the 2:4 hardware.

    Returns:
      `weights`, `masks`, `low_rank` and their sum, `total`.

    Example:
      >>> import jax.numpy as jnp
      >>> kernel, s = jnp.arange(32)[:, None] % 4 * jnp.ones(8), jnp.ones((2, 8))
      >>> storage_bits({"up": {"kernel": kernel, "slorb_s": s}},
      ...              {"up": {"kernel": kernel > 1}})
      {'weights': 8.0, 'masks': 1.0, 'low_rank': 1.0, 'total': 10.0}
    """
    leaves, mask_leaves = leaf_paths(params), leaf_paths(masks)
    factors = {p: leaf for p, leaf in leaves.items() if p.endswith((f"/{S}", f"/{X}"))}
    masked = {p: mask for p, mask in mask_leaves.items() if mask is not None}
    kernels = {*masked, *(f"{node}/{KERNEL}" for node in nodes(factors))}
    if not kernels:
        raise InputError("storage_bits: no matrix is pruned")
    size = sum(leaves[path].size for path in kernels)
    kept, covered = masks_lib.count(masked)
    entries = sum(leaf.size for leaf in factors.values())
    bits = {
        "weights": weight_bits * (kept + size - covered) / size,
        "masks": mask_bits * covered / size,
        "low_rank": factor_bits * entries / size,
    }
    return bits | {"total": sum(bits.values())}


def check(shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raises InputError unless every adapter leaf among these fits its kernel.

    Args:
      shapes: leaf path -> shape, of plain and of adapter leaves.
    """
    for path, shape in shapes.items():
        if not is_adapter(path, shapes):
            continue
        node, name = path.rsplit("/", 1)
        *lead, n_in, n_out = shapes.get(f"{node}/{KERNEL}", (0, 0))
        for other in (f"{node}/{leaf}" for leaf in (KERNEL, *_BESIDE[name])):
            if other not in shapes:
                raise InputError(f"{path}: there is no {other} that it belongs to")
        expected = _expected(name, node, shapes)
        if shape != (*lead, *expected):
            raise InputError(
                f"{path}: expected the shape {(*lead, *expected)} beside a kernel of "
                f"shape {(*lead, n_in, n_out)}, found {shape}"
            )
        # Without a projection of its own a rank is of groups of inputs.
        if name == S and not (
            shape[-2] and (n_in % shape[-2] == 0 or f"{node}/{X}" in shapes)
        ):
            raise InputError(
                f"{path}: its rank {shape[-2]} does not divide the {n_in} inputs of "
                "the kernel"
            )
        if name == QUANT_SCALE and not 0 < shape[-2] <= n_in:
            raise InputError(
                f"{path}: {shape[-2]} groups cannot share the {n_in} inputs of the "
                "kernel"
            )


def _expected(
    name: str, node: str, shapes: Mapping[str, tuple[int, ...]]
) -> tuple[int, ...]:
    """The shape of a leaf after the leading axes, as far as the others fix it."""
    n_in, n_out = shapes[f"{node}/{KERNEL}"][-2:]
    factor = S if name in (S, X) else LORA_B
    rank = (0, 0, *shapes.get(f"{node}/{factor}", ()))[-2]
    groups = (0, 0, *shapes.get(f"{node}/{QUANT_SCALE}", ()))[-2]
    outliers = (0, *shapes.get(f"{node}/{OUTLIER_INDEX}", ()))[-1]
    return {
        S: (rank, n_out),
        X: (n_in, rank),
        SCALE: (2, n_out),
        LORA_A: (n_in, rank),
        LORA_B: (rank, n_out),
        LORA_SCALE: (),
        QUANT_SCALE: (groups, n_out),
        QUANT_ZERO: (groups, n_out),
        OUTLIER_INDEX: (outliers,),
        OUTLIER_VALUE: (outliers,),
    }[name]


def is_adapter(path: str, leaves: Mapping[str, Any]) -> bool:
    """Whether plain params lack this leaf; norms have a scale, too, but no kernel."""
    node, _, name = path.rpartition("/")
    return name in _BESIDE and (name != SCALE or f"{node}/{KERNEL}" in leaves)


def nodes(adapter: Adapter) -> list[str]:
    """Paths of the dicts that hold these leaves, and their kernels."""
    return list(dict.fromkeys(path.rpartition("/")[0] for path in adapter))
