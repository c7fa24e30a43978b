"""Every operation on mask trees: the tree of params, bool, True = kept, None = dense.

Kernels are stored [L, in, out] while patterns, scores and solvers see [..., out, in];
`to_matrix` and `to_kernel` are the only place where one becomes the other.

Packed bits (`pack_bits`) are little-endian along the last axis: bit i of byte j of a
row is entry 8 j + i, and the unused high bits of the last byte are zero. The leading
axes keep their shape, so packed masks are sharded and sliced like the masks.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Shaped, UInt8

from sparse_jax import mesh
from sparse_jax.ops import MaskMode, effective_weight
from sparse_jax.sparsity.patterns import Pattern
from sparse_jax.tree import Rules, from_paths, leaf_paths, match_rules
from sparse_jax.types import InputError, Masks, Params, Tree


def to_matrix(kernel: Shaped[Array, "*L in out"]) -> Shaped[Array, "*L out in"]:
    """Views a stored kernel as the matrix that patterns and solvers see."""
    return jnp.swapaxes(kernel, -1, -2)


def to_kernel(matrix: Shaped[Array, "*L out in"]) -> Shaped[Array, "*L in out"]:
    """Turns a matrix back into a stored kernel; the inverse of `to_matrix`."""
    return jnp.swapaxes(matrix, -1, -2)


def map_masks(function: Callable[..., Any], *trees: Tree) -> Tree:
    """`jax.tree.map` in which None is a leaf, so that masks may come in any place.

    Plain tree.map drops None leaves, and then refuses trees that hold an array there.

    Example:
      >>> map_masks(lambda p, m: p if m is None else p * m, {"a": 2, "b": 3},
      ...           {"a": None, "b": 0})
      {'a': 2, 'b': 0}
    """
    return jax.tree.map(function, *trees, is_leaf=lambda leaf: leaf is None)


def make_masks(params: Params, rules: Rules) -> Masks:
    """All-True masks for the leaves whose rule gives a `Pattern`, None for the rest.

    Args:
      params: nested dict of arrays; a leaf with a pattern is a kernel [..., in, out].
      rules: ordered (path regex, Pattern or None); every leaf must be covered.

    Raises:
      InputError: a leaf is uncovered, or a pattern does not divide its matrix.

    Example:
      >>> from sparse_jax.sparsity.patterns import NM
      >>> masks = make_masks(
      ...     {"up": {"kernel": jnp.ones((4, 2)), "bias": jnp.ones(2)}},
      ...     [(".*/kernel", NM(2, 4)), (".*", None)])
      >>> masks["up"]["kernel"].shape, masks["up"]["bias"]
      ((4, 2), None)
    """
    masks = {}
    leaves = leaf_paths(params)
    for path, pattern in leaf_paths(match_rules(rules, params)).items():
        check_rule(pattern, leaves[path].shape, path)
        masks[path] = None
        if pattern is not None:
            masks[path] = jnp.ones(leaves[path].shape, bool)
    return from_paths(masks)


def check_rule(pattern: Any, shape: tuple[int, ...], path: str) -> None:
    """Raises InputError unless a rule's value is a pattern that divides the kernel."""
    if pattern is None:
        return
    if not isinstance(pattern, Pattern):
        raise InputError(f"rules: {path} must get a Pattern or None, found {pattern!r}")
    if len(shape) < 2:
        raise InputError(
            f"rules: {path} has shape {shape} and is no matrix; leave it dense"
        )
    pattern.check((*shape[:-2], shape[-1], shape[-2]), path)


def apply(params: Params, masks: Masks, *, mode: MaskMode = "fixed") -> Params:
    """Params with their pruned weights at zero; see `ops.effective_weight`."""
    return map_masks(lambda w, m: effective_weight(w, m, mode=mode), params, masks)


def project_kernel(
    pattern: Pattern,
    scores: Shaped[Array, "*L in out"],
    prior_mask: Bool[Array, "*L in out"] | None = None,
) -> Bool[Array, "*L in out"]:
    """`Pattern.project` for scores and masks in the layout of stored kernels."""
    prior = None if prior_mask is None else to_matrix(prior_mask)
    return to_kernel(pattern.project(to_matrix(scores), prior))


def pack_bits(mask: Bool[Array, "*lead n"]) -> UInt8[Array, "*lead bytes"]:
    """Packs a mask eight to a byte along its last axis, little-endian.

    Example:
      >>> pack_bits(jnp.array([True, False, True] + [False] * 5 + [True])).tolist()
      [5, 1]
    """
    return jnp.packbits(mask, axis=-1, bitorder="little")


def unpack_bits(
    packed: UInt8[Array | np.ndarray, "*lead bytes"],
    shape: tuple[int, ...],
    name: str = "mask",
) -> Bool[Array, "..."]:
    """Unpacks a mask of `shape`; the inverse of `pack_bits`.

    Raises:
      InputError: the packed array does not belong to a mask of that shape.
    """
    expected = (*shape[:-1], -(-shape[-1] // 8))
    if tuple(packed.shape) != expected:
        raise InputError(
            f"{name}: packed mask must have shape {expected} to hold {tuple(shape)}, "
            f"found {tuple(packed.shape)}"
        )
    bits = jnp.unpackbits(jnp.asarray(packed), axis=-1, bitorder="little")
    if bool(bits[..., shape[-1] :].any()):
        raise InputError(
            f"{name}: packed mask has bits set past its end; the file is damaged"
        )
    return bits[..., : shape[-1]].astype(bool)


def pack_masks(masks: Masks) -> Tree:
    """Packs every mask of a tree; None stays None."""
    return map_masks(lambda m: None if m is None else pack_bits(m), masks)


def unpack_masks(packed: Tree, params: Params) -> Masks:
    """Unpacks a tree of packed masks to the shapes of their params."""
    leaves = leaf_paths(params)
    return from_paths(
        {
            path: None if bits is None else unpack_bits(bits, leaves[path].shape, path)
            for path, bits in leaf_paths(packed).items()
        }
    )


def count_per_matrix(flags: Bool[Array, "... in out"]) -> np.ndarray:
    """Counts True entries per matrix, int64 [...]; a stacked leaf may pass 2**31."""
    return mesh.to_host(_count_matrices(flags)).astype(np.int64)


@jax.jit
def _count_matrices(flags):
    return jnp.sum(flags, axis=(-2, -1), dtype=jnp.int32)


@jax.jit
def _count_violations(weights, mask):
    return jnp.sum((weights != 0) & ~mask, axis=(-2, -1), dtype=jnp.int32)


def count(masks: Masks) -> tuple[int, int]:
    """Returns how many weights are kept, and of how many, over all masks of a tree.

    Example:
      >>> count({"a": jnp.array([[True, False]]), "b": None})
      (1, 2)
    """
    present = [mask for mask in leaf_paths(masks).values() if mask is not None]
    kept = sum(int(count_per_matrix(mask).sum()) for mask in present)
    return kept, sum(mask.size for mask in present)


def violations(params: Params, masks: Masks) -> int:
    """How many pruned weights are not exactly zero; NaN counts as a violation."""
    weights = leaf_paths(params)
    return sum(
        int(mesh.to_host(_count_violations(weights[path], mask)).sum(dtype=np.int64))
        for path, mask in leaf_paths(masks).items()
        if mask is not None
    )


def check_nested(inner: Masks, outer: Masks) -> None:
    """Raises InputError unless all that `inner` keeps is kept by `outer` as well.

    Example:
      >>> check_nested({"a": jnp.array([[True, False]])}, {"a": None})
    """
    inner_leaves = leaf_paths(inner)
    for path, mask in leaf_paths(outer).items():
        if mask is None:
            continue
        kept = inner_leaves[path]
        refilled = int((~mask).sum() if kept is None else (kept & ~mask).sum())
        if refilled:
            raise InputError(
                f"masks are not nested: {path} keeps {refilled} weights that the "
                "earlier mask has pruned"
            )


def is_nested(inner: Masks, outer: Masks) -> bool:
    """Tells whether all that `inner` keeps is kept by `outer`; see `check_nested`."""
    try:
        check_nested(inner, outer)
    except InputError:
        return False
    return True
