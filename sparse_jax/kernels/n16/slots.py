"""The N kept inputs of every block of 16 as N slots: an id (0 to 15) and a value.

A superblock is 16 outputs x 64 inputs: 4 blocks. It is stored in N steps of 64 weights:
for every block its slots four at a time ("quads", N // 4 of them), then the slots left
over ("rest"), one at a time for the 4 blocks together. A step is 32 bytes of 4-bit ids,
then its 64 values; half 0 and half 1 of a panel are two times 8 lanes.

Int order, for products that are added in fours:

    ids of a quad    byte 4 lane + j: slot j; low nibble half 0, high nibble half 1
    ids of the rest  byte 16 (block % 2) + output; low nibble blocks 0, 1, high 2, 3
    values           [half, lane, j]: slot j of a quad, block j of the rest
    lane i of half h is output 4 h + i for i < 4, and 4 h + i + 4 otherwise

Float order, where every product has a lane of its own; lane i of half h is output
8 h + i:

    ids of a quad    byte 16 (lane // 4) + 4 j + lane % 4: slot j; nibbles as above
    ids of the rest  as above
    values           [half, j, lane]: slot j of a quad; of the rest, block
                     2 half + lane // 4 of output 4 j + lane % 4
"""

from typing import Any

import numpy as np

from sparse_jax.kernels.format import ArraySpec, pad_to, panels, to_panels
from sparse_jax.types import InputError

BLOCK, BLOCKS, SUPERBLOCK = 16, 4, 64
ID_BYTES, STEP = 32, 64

INT_OUTPUTS = np.array([4 * h + i + 4 * (i >= 4) for h in range(2) for i in range(8)])
"""Output of [half, lane] in int order."""


def find_slots(
    mask_OI: np.ndarray, n: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """The ids of the N slots of every block, ascending, and which of them are kept.

    A block that keeps fewer than N fills its slots with pruned inputs, whose value is
    zero, so ids never repeat.

    Args:
      mask_OI: True = kept; `in` a multiple of 16.
      n: slots per block; by default as many as the fullest block keeps.

    Returns:
      ids uint8 [out, blocks, n] and kept bool [out, blocks, n].

    Raises:
      InputError: a block keeps more than `n`.

    Example:
      >>> ids, kept = find_slots(np.arange(16)[None] % 8 == 3, n=3)
      >>> ids.tolist(), kept.tolist()
      ([[[0, 3, 11]]], [[[False, True, True]]])
    """
    mask_OBK = mask_OI.reshape(mask_OI.shape[0], -1, BLOCK)
    counts_OB = mask_OBK.sum(axis=2, dtype=np.uint8)
    n = n or max(1, int(counts_OB.max(initial=1)))
    if counts_OB.max(initial=0) > n:
        row, block = np.argwhere(counts_OB > n)[0]
        raise InputError(
            f"row {row}, inputs {BLOCK * block} to {BLOCK * block + BLOCK - 1} keep "
            f"{counts_OB[row, block]} of 16, expected at most {n}"
        )
    # Kept inputs sort below pruned ones, each part ascending; the low bits are the id.
    key_OBK = np.arange(BLOCK, dtype=np.uint8) | ((~mask_OBK).view(np.uint8) << 4)
    ids_OBN = np.sort(np.sort(key_OBK, axis=2)[..., :n] & (BLOCK - 1), axis=2)
    return ids_OBN, np.take_along_axis(mask_OBK, ids_OBN, axis=2)


def plan(mask_OI: np.ndarray) -> dict[str, int]:
    """N of the whole matrix, for `find_slots` on a part of its rows."""
    blocks = mask_OI.reshape(mask_OI.shape[0], -1, BLOCK)
    return {"n": max(1, int(blocks.sum(axis=2, dtype=np.uint8).max(initial=1)))}


def take_slots(
    w_OI: np.ndarray, ids_OBN: np.ndarray, kept_OBN: np.ndarray
) -> np.ndarray:
    """The values of the slots, zero where a slot is not kept."""
    w_OBK = w_OI.reshape(w_OI.shape[0], -1, BLOCK)
    values_OBN = np.take_along_axis(w_OBK, ids_OBN, axis=2)
    return np.where(kept_OBN, values_OBN, np.zeros((), w_OI.dtype))


def to_superblocks(slots_OBN: np.ndarray) -> np.ndarray:
    """[out, blocks, n] -> [panels, superblocks, 16 outputs, 4 blocks, n]."""
    slots_PRBN = to_panels(pad_to(slots_OBN, 1, BLOCKS))
    p, r, b, n = slots_PRBN.shape
    return slots_PRBN.reshape(p, r, b // BLOCKS, BLOCKS, n).swapaxes(1, 2)


def from_superblocks(slots_PSRBN: Any, shape: tuple[int, int]) -> Any:
    """The inverse of `to_superblocks`, for numpy and JAX."""
    p, s, r, b, n = slots_PSRBN.shape
    slots_OBN = slots_PSRBN.swapaxes(1, 2).reshape(p * r, s * b, n)
    return slots_OBN[: shape[0], : shape[1] // BLOCK]


def int_values(values_PSRBN: np.ndarray) -> np.ndarray:
    """Values in int order: [panels, superblocks, N, 64]."""
    p, s, _, b, n = values_PSRBN.shape
    lanes = values_PSRBN[:, :, INT_OUTPUTS]  # [p, s, half lane, block, slot]
    quads = lanes[..., : n // 4 * 4].reshape(p, s, 16, b, n // 4, 4)
    quads = quads.transpose(0, 1, 3, 4, 2, 5).reshape(p, s, -1, STEP)
    rest = lanes[..., n // 4 * 4 :].transpose(0, 1, 4, 2, 3).reshape(p, s, -1, STEP)
    return np.concatenate([quads, rest], axis=2)


def split_int_values(steps: Any, xp: Any) -> Any:
    """The inverse of `int_values`; `xp` is numpy or jax.numpy."""
    p, s, n, _ = steps.shape
    q = n // 4
    quads = steps[:, :, : 4 * q].reshape(p, s, BLOCKS, q, 16, 4)
    quads = quads.transpose(0, 1, 4, 2, 3, 5).reshape(p, s, 16, BLOCKS, 4 * q)
    rest = (
        steps[:, :, 4 * q :].reshape(p, s, n % 4, 16, BLOCKS).transpose(0, 1, 3, 4, 2)
    )
    return xp.concatenate([quads, rest], axis=-1)[:, :, np.argsort(INT_OUTPUTS)]


def float_values(values_PSRBN: np.ndarray) -> np.ndarray:
    """Values in float order: [panels, superblocks, N, 64]."""
    p, s, _, b, n = values_PSRBN.shape
    halves = values_PSRBN.reshape(p, s, 2, 8, b, n)
    quads = halves[..., : n // 4 * 4].reshape(p, s, 2, 8, b, n // 4, 4)
    quads = quads.transpose(0, 1, 4, 5, 2, 6, 3).reshape(p, s, -1, STEP)
    # [j, output % 4, half, block % 2, slot] -> [slot, half, j, block % 2, output % 4]
    rest = values_PSRBN[..., n // 4 * 4 :].reshape(p, s, 4, 4, 2, 2, n % 4)
    rest = rest.transpose(0, 1, 6, 4, 2, 5, 3).reshape(p, s, -1, STEP)
    return np.concatenate([quads, rest], axis=2)


def split_float_values(steps: Any, xp: Any) -> Any:
    """The inverse of `float_values`."""
    p, s, n, _ = steps.shape
    q = n // 4
    quads = steps[:, :, : 4 * q].reshape(p, s, BLOCKS, q, 2, 4, 8)
    quads = quads.transpose(0, 1, 4, 6, 2, 3, 5).reshape(p, s, 16, BLOCKS, 4 * q)
    rest = steps[:, :, 4 * q :].reshape(p, s, n % 4, 2, 4, 2, 4)
    rest = rest.transpose(0, 1, 4, 6, 3, 5, 2).reshape(p, s, 16, BLOCKS, n % 4)
    return xp.concatenate([quads, rest], axis=-1)


def _id_bytes(quads: np.ndarray, ids_PSRBN: np.ndarray) -> np.ndarray:
    """Two ids in a byte, [p, s, N, 32]; quads [p, s, steps, 64] are half 0 and 1."""
    p, s, _, _, n = ids_PSRBN.shape
    rest = ids_PSRBN[..., n // 4 * 4 :].transpose(0, 1, 4, 3, 2)  # [.., block, output]
    pairs = np.concatenate([quads, rest.reshape(p, s, -1, STEP)], axis=2)
    return pairs[..., :ID_BYTES] | (pairs[..., ID_BYTES:] << 4)


def _split_id_bytes(id_bytes: Any, xp: Any) -> tuple[Any, Any]:
    """The 64 ids of every quad, and [p, s, 16, 4, rest] of the rest."""
    p, s, n, _ = id_bytes.shape
    pairs = xp.concatenate([id_bytes & 15, id_bytes >> 4], axis=-1)
    rest = pairs[:, :, n // 4 * 4 :].reshape(p, s, n % 4, BLOCKS, 16)
    return pairs[:, :, : n // 4 * 4], rest.transpose(0, 1, 4, 3, 2)


def int_ids(ids_PSRBN: np.ndarray) -> np.ndarray:
    """Ids in int order: uint8 [panels, superblocks, N, 32]."""
    n = ids_PSRBN.shape[-1]
    return _id_bytes(int_values(ids_PSRBN)[:, :, : n // 4 * 4], ids_PSRBN)


def split_int_ids(id_bytes: Any, xp: Any) -> Any:
    """The inverse of `int_ids`: [panels, superblocks, 16, 4, N]."""
    quads, rest = _split_id_bytes(id_bytes, xp)
    return xp.concatenate([split_int_values(quads, xp), rest], axis=-1)


def float_ids(ids_PSRBN: np.ndarray) -> np.ndarray:
    """Ids in float order: uint8 [panels, superblocks, N, 32]."""
    p, s, _, _, n = ids_PSRBN.shape
    quads = float_values(ids_PSRBN)[:, :, : n // 4 * 4]  # [half, j, lane]
    quads = quads.reshape(p, s, -1, 2, 4, 2, 4).transpose(0, 1, 2, 3, 5, 4, 6)
    return _id_bytes(quads.reshape(p, s, -1, STEP), ids_PSRBN)


def split_float_ids(id_bytes: Any, xp: Any) -> Any:
    """The inverse of `float_ids`."""
    quads, rest = _split_id_bytes(id_bytes, xp)
    p, s = quads.shape[:2]
    quads = quads.reshape(p, s, -1, 2, 2, 4, 4).transpose(0, 1, 2, 3, 5, 4, 6)
    quads = split_float_values(quads.reshape(p, s, -1, STEP), xp)
    return xp.concatenate([quads, rest], axis=-1)


def int_blocks(ids_PSRBN: np.ndarray, codes_PSRBN: np.ndarray) -> np.ndarray:
    """Superblocks of int8 codes: uint8 [panels, superblocks, N, 96]."""
    codes = int_values(codes_PSRBN).view(np.uint8)
    return np.concatenate([int_ids(ids_PSRBN), codes], axis=3)


def split_int_blocks(blocks: Any, xp: Any) -> tuple[Any, Any]:
    """Ids and int8 codes [panels, superblocks, 16, 4, N]; undoes `int_blocks`."""
    codes = blocks[..., ID_BYTES:].view(xp.int8)
    return split_int_ids(blocks[..., :ID_BYTES], xp), split_int_values(codes, xp)


def place(ids_OBN: Any, values_OBN: Any, xp: Any) -> Any:
    """The matrix [out, in] with every slot's value at its id, zero elsewhere."""
    ids = xp.arange(BLOCK, dtype=xp.uint8)
    w_OBK = xp.zeros((*ids_OBN.shape[:2], BLOCK), values_OBN.dtype)
    for slot in range(ids_OBN.shape[2]):
        chosen_OBK = ids_OBN[..., slot, None] == ids
        w_OBK = xp.where(chosen_OBK, values_OBN[..., slot, None], w_OBK)
    return w_OBK.reshape(ids_OBN.shape[0], -1)


def specs(shape: tuple[int, int], value_bytes: int) -> dict[str, ArraySpec]:
    """The `blocks` array of a format whose step holds `value_bytes` of values."""
    size = (
        panels(shape[0]),
        panels(shape[1], SUPERBLOCK),
        None,
        ID_BYTES + value_bytes,
    )
    return {"blocks": ArraySpec(dtype="uint8", shape=size)}
