"""Non-zeros that each row of a weight stream has in each column's slice.

Counted from a mask, or drawn. What makes a column of processing elements wait for
another is how these counts differ between slices, in a row and on the whole; three
kinds of drawn masks span the possibilities:

    uniform     every weight is kept by chance, alone:        Binomial(slice, 1 - s)
    balanced    every slice keeps floor or ceil of (1 - s) slice weights in every row,
                and within one of (1 - s) of all it has seen after every row
    sparsegpt   exactly (1 - s) of every block of 128 inputs x all outputs, as SparseGPT
                ranks them; some outputs and some inputs keep more than others

A pattern, such as "2:4" or "group:16", is a kind as well: it keeps what it would keep
of random scores.
"""

import numpy as np
from jaxtyping import Bool, Int

from sparse_jax.kernels.weight_stream.costs import slice_bounds
from sparse_jax.sparsity import NM, parse
from sparse_jax.types import InputError

KINDS = ("uniform", "balanced", "sparsegpt")
"""Kinds of drawn masks that are no pattern."""

OUTPUT_SPREAD = 0.3
"""Standard deviation, between outputs, of the log odds that SparseGPT keeps a weight.

Measured at 70 % by benchmarks/mask_spread.py on BabyLlama and on the recipe's default
model: 0.31 over all matrices, 0.1 for `down` to 0.6 for `q`."""

INPUT_SPREAD = 0.3
"""The same between inputs: 0.31 over all matrices, 0.2 for `gate` to 0.5 for `o`."""

_BLOCK = 128
_GOLDEN = (5**0.5 - 1) / 2


def slice_counts(
    mask_OI: Bool[np.ndarray, "O I"], n_slices: int
) -> Int[np.ndarray, "O n_slices"]:
    """Kept weights of each row in consecutive slices of the inputs, see `slice_bounds`.

    Args:
      mask_OI: True = kept; a transposed view is as fast.
      n_slices: columns of processing elements.

    Returns:
      int32 counts.

    Raises:
      InputError: there are no slices.

    Example:
      >>> slice_counts(np.eye(3, 5, dtype=bool), 2).tolist()
      [[1, 0], [1, 0], [1, 0]]
    """
    bounds = slice_bounds(mask_OI.shape[1], n_slices)
    counts_OC = np.zeros((mask_OI.shape[0], n_slices), np.int32)
    larger = mask_OI.shape[1] % n_slices
    # The first `larger` slices are one input longer; those of one length are an axis.
    for first, last in ((0, larger), (larger, n_slices)):
        part_OI = mask_OI[:, bounds[first] : bounds[last]]
        if part_OI.size:
            counts_OC[:, first:last] = _equal_slices(part_OI, last - first)
    return counts_OC


def draw_counts(
    rng: np.random.Generator,
    shape: tuple[int, int],
    sparsity: float,
    n_slices: int,
    kind: str = "uniform",
    *,
    transposed: bool = False,
) -> Int[np.ndarray, "O n_slices"]:
    """Counts of a mask drawn at random.

    Args:
      rng: where chance comes from.
      shape: rows of the stream, and what is cut into slices.
      sparsity: fraction of zeros.
      n_slices: columns of processing elements.
      kind: one of `KINDS` or a pattern, see `check_kind`.
      transposed: the rows of the stream are the inputs of the matrix, its outputs are
        cut into slices. "uniform" and "balanced" do not tell one from the other.

    Returns:
      int32 counts.

    Raises:
      InputError: see `check_kind`; no slices, or a matrix that the pattern does not
        divide.

    Example:
      >>> rng = np.random.default_rng(0)
      >>> draw_counts(rng, (4, 12), 0.5, 2, "balanced").tolist()
      [[3, 3], [3, 3], [3, 3], [3, 3]]
    """
    if kind not in ("uniform", "balanced"):
        mask_OI = draw_mask(rng, shape[::-1] if transposed else shape, sparsity, kind)
        return slice_counts(mask_OI.T if transposed else mask_OI, n_slices)
    check_kind(kind, sparsity)
    sizes_C = np.diff(slice_bounds(shape[1], n_slices))
    if kind == "uniform":
        drawn_OC = rng.binomial(sizes_C, 1 - sparsity, (shape[0], n_slices))
        return drawn_OC.astype(np.int32)
    # Each column's running total, rounded down from its own offset.
    offset_C = (rng.random() + _GOLDEN * np.arange(n_slices)) % 1.0
    row_O1 = np.arange(shape[0] + 1)[:, None]
    total_OC = np.floor((1 - sparsity) * sizes_C * row_O1 + offset_C)
    return np.diff(total_OC, axis=0).astype(np.int32)


def draw_mask(
    rng: np.random.Generator, shape: tuple[int, int], sparsity: float, kind: str
) -> Bool[np.ndarray, "O I"]:
    """A mask [O, I] drawn at random; "balanced" has counts alone, see `draw_counts`.

    Raises:
      InputError: see `check_kind`, or a matrix that the pattern does not divide.

    Example:
      >>> mask = draw_mask(np.random.default_rng(0), (2, 8), 0.5, "2:4")
      >>> mask.reshape(2, 2, 4).sum(2).tolist()
      [[2, 2], [2, 2]]
    """
    check_kind(kind, sparsity)
    if kind == "balanced":
        raise InputError("masks 'balanced' is a kind of counts: choose another kind")
    if kind == "sparsegpt":
        return sparsegpt_mask(rng, shape, sparsity)
    scores_OI = rng.random(shape, np.float32)
    if kind == "uniform":
        return scores_OI >= sparsity
    return np.asarray(parse(kind, sparsity).project(scores_OI))


def check_kind(kind: str, sparsity: float) -> None:
    """Refuses what masks cannot be drawn of.

    Args:
      kind: one of `KINDS`, or a pattern as `sparsity.parse` reads it.
      sparsity: fraction of zeros; of N:M, the one that it fixes.

    Raises:
      InputError: an unknown kind, a sparsity outside [0, 1) or not the pattern's own.
    """
    if not 0 <= sparsity < 1:
        raise InputError(f"sparsity must be in [0, 1), found {sparsity}")
    if kind in KINDS:
        return
    try:
        own = parse(kind, None if "@" in kind else sparsity)
    except InputError as error:
        raise InputError(
            f"masks {kind!r} is unknown; choose one of {list(KINDS)} or a pattern such "
            f"as '2:4' or 'group:16' ({error})"
        ) from error
    if "@" in kind or (isinstance(own, NM) and abs(own.sparsity - sparsity) > 1e-3):
        raise InputError(
            f"masks {kind!r} fixes a sparsity of its own, found {sparsity} beside it; "
            "give the pattern alone and the sparsity that it has"
        )


def sparsegpt_mask(
    rng: np.random.Generator, shape: tuple[int, int], sparsity: float
) -> Bool[np.ndarray, "O I"]:
    """Draws a mask with the statistics of SparseGPT's.

    A weight's score is the sum of a normal variable of its output, one of its input
    (see `OUTPUT_SPREAD`) and logistic noise; the best of every 128 inputs x all outputs
    are kept, so that the log odds of a weight are linear in the first two.

    Example:
      >>> mask = sparsegpt_mask(np.random.default_rng(0), (64, 256), 0.75)
      >>> mask[:, :128].sum().item(), mask[:, 128:].sum().item()
      (2048, 2048)
    """
    n_outputs, n_inputs = shape
    output_O = rng.normal(0, OUTPUT_SPREAD, n_outputs).astype(np.float32)
    input_I = rng.normal(0, INPUT_SPREAD, n_inputs).astype(np.float32)
    mask_OI = np.empty(shape, bool)
    for first in range(0, n_inputs, _BLOCK):
        block = slice(first, min(first + _BLOCK, n_inputs))
        size = n_outputs, block.stop - first
        score_OB = rng.logistic(size=size).astype(np.float32)
        score_OB += output_O[:, None]
        score_OB += input_I[block]
        pruned = int(score_OB.size * sparsity)
        order = np.argpartition(score_OB, pruned, axis=None)
        kept = np.ones(score_OB.size, bool)
        kept[order[:pruned]] = False
        mask_OI[:, block] = kept.reshape(size)
    return mask_OI


def _equal_slices(part_OI: np.ndarray, n_slices: int) -> np.ndarray:
    """Sums over n_slices slices of equal length."""
    ones_OI = part_OI.view(np.uint8)
    size = part_OI.shape[1] // n_slices
    if not part_OI.flags.c_contiguous and part_OI.strides[0] == 1:
        return ones_OI.T.reshape(n_slices, size, -1).sum(1, dtype=np.int32).T
    if size > 16:
        slices_OCS = ones_OI.reshape(len(ones_OI), n_slices, size)
        return slices_OCS.sum(2, dtype=np.int32)
    # A sum over a short axis is slow in numpy; adding its entries is not.
    counts_OC = np.zeros((len(ones_OI), n_slices), np.uint8)
    for i in range(size):
        counts_OC += ones_OI[:, i::size]
    return counts_OC
