"""Unstructured int8 that works per kept weight: a balanced base and a tail."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sparse_jax.kernels.ell import tail
from sparse_jax.kernels.format import (
    MAX_INT8_INPUTS,
    PANEL,
    Arrays,
    ArraySpec,
    Format,
    from_panels,
    pad_to,
    panels,
    to_panels,
)
from sparse_jax.kernels.n16 import slots
from sparse_jax.kernels.quantize import quantize_rows, quantized_dot

NAME = "ell_int8"
_SLOT_BYTES = slots.ID_BYTES + slots.STEP
_STEP_BYTES = 2 * PANEL * tail.SLOTS + 2
_CHUNK = 1 << 22
"""Weights that are packed at a time, so that packing needs little memory."""
_SAMPLE = 8
"""Evenly spread panels whose tails are laid out to choose B."""
_TAIL_COST = 1.3
"""What a byte of the tail costs beside one of the base, in time: looking up a wide id
takes AVX2 twice as long and AVX-512 no longer."""


def _split(mask_OI: np.ndarray, n_slots: int) -> np.ndarray:
    """Which kept weights go to the tail: all after the first B of their block."""
    kept_OBK = mask_OI.reshape(mask_OI.shape[0], -1, slots.BLOCK)
    rank_OBK = np.cumsum(kept_OBK, axis=2, dtype=np.uint8)
    return (kept_OBK & (rank_OBK > n_slots)).reshape(mask_OI.shape)


def choose_slots(mask_OI: np.ndarray) -> int:
    """B with the least cost for a mask.

    Args:
      mask_OI: True = kept; `out` and `in` are multiples of 16 and 64.

    Example:
      >>> choose_slots(np.random.default_rng(0).random((16, 1024)) < 0.5)
      7
    """
    n_out, n_in = mask_OI.shape
    fullest = mask_OI.reshape(-1, slots.BLOCK).sum(axis=1).max(initial=1)

    def cost(n_slots: int) -> float:
        base = n_out // PANEL * n_in // slots.SUPERBLOCK * _SLOT_BYTES * n_slots
        steps = len(tail.schedule(_split(mask_OI, n_slots)).panels)
        return base + _TAIL_COST * steps * _STEP_BYTES

    best, least = 1, cost(1)
    for n_slots in range(2, int(fullest) + 1):
        # The cost falls, then rises, with B.
        if (new := cost(n_slots)) > least:
            break
        best, least = n_slots, new
    return best


def _pad(codes_OI: np.ndarray) -> np.ndarray:
    """Codes padded to whole panels and superblocks."""
    return pad_to(pad_to(codes_OI, 0, PANEL), 1, slots.SUPERBLOCK)


def _pack(w_OI: np.ndarray, mask_OI: np.ndarray) -> Arrays:
    codes_OI = np.empty(w_OI.shape, np.int8)
    scales_O = np.empty(len(w_OI), np.float32)
    step = max(1, _CHUNK // w_OI.shape[1])
    for start in range(0, len(w_OI), step):
        rows = slice(start, start + step)
        kept_OI = np.where(mask_OI[rows], w_OI[rows], 0)
        codes_OI[rows], scales_O[rows] = quantize_rows(kept_OI)
    return pack_int8(codes_OI, scales_O)


def pack_int8(codes_OI: np.ndarray, scales_O: np.ndarray) -> Arrays:
    """The arrays of ell_int8 from codes int8 [out, in] and scales float32 [out]."""
    n_out, n_in = codes_OI.shape
    chosen = np.unique(np.linspace(0, panels(n_out) - 1, _SAMPLE).astype(int))
    sample = (chosen[:, None] * PANEL + np.arange(PANEL)).ravel()
    sample = sample[sample < n_out]
    n_slots = choose_slots(_pad(codes_OI[sample]) != 0)
    step = max(1, _CHUNK // n_in // PANEL) * PANEL
    parts = [
        _pack_panels(_pad(codes_OI[start : start + step]), n_slots)
        for start in range(0, n_out, step)
    ]
    arrays = {
        name: np.concatenate([p.pop(name) for p in parts]) for name in [*parts[0]]
    }
    ends = np.cumsum(arrays.pop("counts"))
    arrays["offsets"] = np.concatenate([[0], ends]).astype(np.uint32)
    arrays["scales"] = to_panels(scales_O.astype(np.float32))
    return {name: arrays[name] for name in _specs((n_out, n_in))}


def _pack_panels(codes_OI: np.ndarray, n_slots: int) -> Arrays:
    """The arrays of some panels, with `counts` of tail steps in place of offsets."""
    tail_OI = _split(codes_OI != 0, n_slots)
    ids_OBN, kept_OBN = slots.find_slots((codes_OI != 0) & ~tail_OI, n_slots)
    codes_OBN = slots.take_slots(codes_OI, ids_OBN, kept_OBN)
    steps = tail.schedule(tail_OI)
    held = steps.columns >= 0
    rows = steps.panels[:, None, None] * PANEL + np.arange(PANEL)[:, None]
    ids = steps.columns - steps.starts[:, None, None] * slots.BLOCK
    ids = np.where(held, ids, 0).astype(np.uint8)
    codes = np.where(held, codes_OI[rows, steps.columns], 0).view(np.uint8)
    return {
        "blocks": slots.int_blocks(
            slots.to_superblocks(ids_OBN), slots.to_superblocks(codes_OBN)
        ),
        "counts": np.bincount(steps.panels, minlength=len(codes_OI) // PANEL),
        "starts": steps.starts.astype(np.uint16),
        "tail": np.concatenate([tail.to_lanes(ids), tail.to_lanes(codes)], axis=1),
    }


def _codes(arrays: Arrays, shape: tuple[int, int], xp: Any) -> Any:
    """The int8 matrix [out, in]."""
    blocks, n_in = arrays["blocks"], shape[1] + -shape[1] % slots.SUPERBLOCK
    p, padded = blocks.shape[0], (blocks.shape[0] * PANEL, n_in)
    ids, codes = slots.split_int_blocks(blocks, xp)
    ids_OBN = slots.from_superblocks(ids, padded)
    base_OI = slots.place(ids_OBN, slots.from_superblocks(codes, padded), xp)
    steps = arrays["starts"].shape[0]
    offsets = arrays["offsets"].astype(xp.int32)
    # jax.numpy needs to be told the length, which is static there.
    length = {} if xp is np else {"total_repeat_length": steps}
    panel = xp.repeat(xp.arange(p), offsets[1:] - offsets[:-1], **length)
    rows = panel[:, None, None] * PANEL + xp.arange(PANEL)[:, None]
    ids, codes = (tail.from_lanes(half) for half in xp.split(arrays["tail"], 2, axis=1))
    starts = arrays["starts"].astype(xp.int32) * slots.BLOCK
    columns = starts[:, None, None] + ids.astype(xp.int32)
    # Empty slots have code 0; the window of the last may stick out of the matrix.
    columns = xp.minimum(columns, n_in - 1)
    codes = codes.view(xp.int8)
    if xp is np:
        np.add.at(base_OI, (rows, columns), codes)
    else:
        base_OI = base_OI.at[rows, columns].add(codes)
    return base_OI[: shape[0], : shape[1]]


def _unpack(arrays: Arrays, shape: tuple[int, int]) -> np.ndarray:
    scales_O = from_panels(arrays["scales"], shape[0])
    return _codes(arrays, shape, np) * scales_O[:, None]


def _dot(x_BI: jax.Array, arrays: Arrays, shape: tuple[int, int]) -> jax.Array:
    codes_OI = _codes(arrays, shape, jnp)
    return quantized_dot(x_BI, codes_OI, from_panels(arrays["scales"], shape[0]))


def _specs(shape: tuple[int, int]) -> dict[str, ArraySpec]:
    p = panels(shape[0])
    return {
        **slots.specs(shape, slots.STEP),
        "scales": ArraySpec(dtype="float32", shape=(p, PANEL)),
        "offsets": ArraySpec(dtype="uint32", shape=(p + 1,)),
        "starts": ArraySpec(dtype="uint16", shape=(None,)),
        "tail": ArraySpec(dtype="uint8", shape=(None, 2 * PANEL * tail.SLOTS)),
    }


def _expected_bits(n_out: int, n_in: int, density: float) -> float:
    """What a uniformly random mask takes, laid out for a few panels."""
    rows = min(_SAMPLE, panels(n_out)) * PANEL
    kept_OI = np.random.default_rng(0).random((rows, n_in)) < density
    kept_OI = pad_to(kept_OI, 1, slots.SUPERBLOCK)
    n_slots = choose_slots(kept_OI)
    base = kept_OI.shape[1] // slots.SUPERBLOCK * _SLOT_BYTES * n_slots
    steps = len(tail.schedule(_split(kept_OI, n_slots)).panels) * PANEL / rows
    return 8 * (base + steps * _STEP_BYTES + 4 * PANEL + 4) / (PANEL * n_in)


ELL_INT8 = Format(
    name=NAME,
    max_inputs=MAX_INT8_INPUTS,
    dtype="int8",
    lossless=False,
    summary="unstructured int8, work per kept weight, a scale per row",
    pack=_pack,
    panel_wise=False,
    unpack=_unpack,
    reference=_dot,
    array_specs=_specs,
    expected_bits=_expected_bits,
)
"""A base of B slots for every 16 inputs, and a tail for the fuller blocks.

    blocks   uint8 [panels, superblocks, B, 96]: the base, exactly as in n16_int8
    scales   float32 [panels, 16]: max|w| / 127 of a row; codes are rounded half to even
    offsets  uint32 [panels + 1]: first tail step of each panel
    starts   uint16 [steps]: block of 16 inputs in which the window starts
    tail     uint8 [steps, 128]: 64 ids, inputs inside the window of 128, and 64 int8
             codes, 0 where the slot is empty; lanes as in n16_int8

A slot of the base takes 12 bits, one of the tail 16; B is chosen for each matrix by its
mask. A uniform mask takes 6.9, 4.4 and 3.2 bits per weight at 50, 70 and 80 % sparsity
(B = 8, 4, 3). Weights that round to 0 are dropped. Activations are quantised as in
`quantize_activations`, and the sums are exact integers.
"""
