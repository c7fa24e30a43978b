"""Small integers in words of 32 bits, as "pack-quantized" checkpoints keep them.

The codes of a row follow each other without gaps, the first in the lowest bits, each as
code + 2^(bits - 1); a row ends with a whole word.
"""

import numpy as np
from jaxtyping import Int8, Int32

_AT_ONCE = 2**22  # codes

WORD = 32


def count(n_codes: int, bits: int) -> int:
    """Words that `n_codes` codes take.

    Example:
      >>> count(43, 3)
      5
    """
    return -(-n_codes * bits // WORD)


def pack(
    codes_RC: Int8[np.ndarray, "rows codes"], bits: int
) -> Int32[np.ndarray, "rows words"]:
    """The words of every row.

    Example:
      >>> codes = np.array([[-8, -7, -1, 0, 1, 2, 6, 7]], np.int8)
      >>> hex(pack(codes, 4).view(np.uint32)[0, 0])
      '0xfea98710'
    """
    rows, codes = codes_RC.shape
    packed = np.zeros((rows, 4 * count(codes, bits)), np.uint8)
    step = max(1, _AT_ONCE // max(1, codes))
    for start in range(0, rows, step):
        piece = codes_RC[start : start + step].astype(np.int16) + (1 << bits - 1)
        fields = piece.astype(np.uint8)[..., None]
        flags = np.unpackbits(fields, axis=-1, count=bits, bitorder="little")
        flat = np.packbits(flags.reshape(len(piece), -1), axis=-1, bitorder="little")
        packed[start : start + step, : flat.shape[1]] = flat
    return packed.view("<i4").astype(np.int32, copy=False)


def unpack(
    words_RW: Int32[np.ndarray, "rows words"], bits: int, codes: int
) -> Int8[np.ndarray, "rows codes"]:
    """The first `codes` codes of every row; the inverse of `pack`."""
    raw = np.ascontiguousarray(words_RW).astype("<i4", copy=False).view(np.uint8)
    if 8 % bits == 0:  # none is in two bytes: faster
        shifts = np.arange(0, 8, bits, dtype=np.uint8)
        fields = (raw[..., None] >> shifts) & np.uint8((1 << bits) - 1)
        fields = fields.reshape(len(raw), -1)[:, :codes]
    else:
        flags = np.unpackbits(raw, axis=-1, count=codes * bits, bitorder="little")
        flags = flags.reshape(len(raw), codes, bits)
        fields = np.packbits(flags, axis=-1, bitorder="little")[..., 0]
    return (fields - np.uint8(1 << bits - 1)).view(np.int8)  # wraps around
