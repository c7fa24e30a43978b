"""The weight stream as the kernel reads it: blocks of rows, non-zeros in order."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from sparse_jax.kernels.weight_stream.costs import slice_bounds
from sparse_jax.types import InputError

SHIFT = 16
"""A word addresses column `word >> SHIFT` and position `word & (2**SHIFT - 1)`."""

_ROWS = 8
_BLOCK_WORDS = 1 << 14
"""Words of a block, unless one row has more: a TPU core's scalar memory is small."""

_PADDING = 256
"""Masks of about one density share a shape, and with it a compiled kernel."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Stream:
    """Non-zeros of a matrix [O, I] for C columns, row by row.

    Attributes:
      values_BK: of each block's non-zeros in order of (o, i), padded with zeros.
      words_BK: where each goes: column and position in its slice.
      starts_BN: first non-zero of each of a block's rows, and the end of the last.
      kept: (o, i) of all non-zeros in order.
      places: (block, position) of all non-zeros in order.
      shape: (O, I).
      columns: C.
    """

    values_BK: Float[np.ndarray, "B K"]
    words_BK: Int[np.ndarray, "B K"]
    starts_BN: Int[np.ndarray, "B N"]
    kept: tuple[np.ndarray, np.ndarray]
    places: tuple[np.ndarray, np.ndarray]
    shape: tuple[int, int]
    columns: int


def encode(
    w_OI: Float[np.ndarray, "O I"],
    mask_OI: Bool[np.ndarray, "_ _"],
    columns: int,
    block_rows: int | None = None,
) -> Stream:
    """The stream of a matrix; kept weights are sent even where they are zero.

    Args:
      w_OI: weights.
      mask_OI: True = kept.
      columns: of processing elements.
      block_rows: rows of a block; None chooses.

    Raises:
      InputError: mask and weight differ in shape, or a slice is too long for a word.
    """
    if w_OI.shape != mask_OI.shape:
        raise InputError(
            f"the mask must have its weight's shape {w_OI.shape}, found {mask_OI.shape}"
        )
    n_rows, n_inputs = w_OI.shape
    bounds = slice_bounds(n_inputs, columns)
    if columns >= 1 << (31 - SHIFT) or bounds[1] >= 1 << SHIFT:
        raise InputError(
            f"a stream addresses less than {1 << (31 - SHIFT)} columns of less than "
            f"{1 << SHIFT} inputs, found {columns} columns of {bounds[1]} inputs"
        )
    o, i = np.nonzero(mask_OI)
    per_row = np.bincount(o, minlength=n_rows)
    if block_rows is None:
        most = max(1, int(per_row.max(initial=1)))
        block_rows = min(_ROWS, max(1, _BLOCK_WORDS // most))
    n_blocks = -(-n_rows // block_rows)
    in_block = np.zeros((n_blocks * block_rows,), np.int64)
    in_block[:n_rows] = per_row
    starts_BN = np.zeros((n_blocks, block_rows + 1), np.int32)
    np.cumsum(in_block.reshape(n_blocks, block_rows), axis=1, out=starts_BN[:, 1:])
    block = o // block_rows
    first_B = np.cumsum(starts_BN[:, -1]) - starts_BN[:, -1]
    places = block, np.arange(len(o)) - first_B[block]
    column = np.searchsorted(bounds, i, side="right") - 1
    most = int(starts_BN[:, -1].max(initial=1))
    words = np.zeros((n_blocks, -(-most // _PADDING) * _PADDING), np.int32)
    values = np.zeros(words.shape, np.float32)
    words[places] = column << SHIFT | (i - bounds[column])
    values[places] = w_OI[o, i]
    return Stream(
        values_BK=values,
        words_BK=words,
        starts_BN=starts_BN,
        kept=(o, i),
        places=places,
        shape=w_OI.shape,
        columns=columns,
    )
