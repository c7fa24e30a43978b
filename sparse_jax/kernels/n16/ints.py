"""N of every 16 inputs in int8 and int4: 4-bit ids gather int8 activations."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

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
from sparse_jax.kernels.quantize import (
    GROUP,
    grouped_dot,
    pack_scales,
    quantize_groups,
    quantize_rows,
    quantized_dot,
    scale_groups,
    scale_inputs,
    unpack_scales,
)


def pack_int8(
    codes_OI: np.ndarray,
    scales_O: np.ndarray,
    mask_OI: np.ndarray,
    n: int | None = None,
) -> Arrays:
    """The arrays of n16_int8 from codes int8 [out, in] and scales float32 [out]."""
    ids_OBN, kept_OBN = slots.find_slots(mask_OI, n)
    codes_OBN = slots.take_slots(codes_OI, ids_OBN, kept_OBN)
    blocks = slots.int_blocks(
        slots.to_superblocks(ids_OBN), slots.to_superblocks(codes_OBN)
    )
    return {"blocks": blocks, "scales": to_panels(scales_O.astype(np.float32))}


def _codes_int8(arrays: Arrays, shape: tuple[int, int], xp: Any) -> Any:
    ids, codes = slots.split_int_blocks(arrays["blocks"], xp)
    ids_OBN = slots.from_superblocks(ids, shape)
    return slots.place(ids_OBN, slots.from_superblocks(codes, shape), xp)


def _unpack_int8(arrays: Arrays, shape: tuple[int, int]) -> np.ndarray:
    scales_O = from_panels(arrays["scales"], shape[0])
    return _codes_int8(arrays, shape, np) * scales_O[:, None]


def _dot_int8(x_BI: jax.Array, arrays: Arrays, shape: tuple[int, int]) -> jax.Array:
    codes_OI = _codes_int8(arrays, shape, jnp)
    return quantized_dot(x_BI, codes_OI, from_panels(arrays["scales"], shape[0]))


def _specs_int8(shape: tuple[int, int]) -> dict[str, ArraySpec]:
    scales = ArraySpec(dtype="float32", shape=(panels(shape[0]), PANEL))
    return {**slots.specs(shape, slots.STEP), "scales": scales}


def pack_int4(
    codes_OI: np.ndarray,
    scales_OG: np.ndarray,
    mask_OI: np.ndarray,
    n: int | None = None,
    width: int = GROUP,
) -> Arrays:
    """The arrays of n16_int4 from codes -8 to 7 and scales [out, ceil(in / width)].

    `width`, 64 or 128, inputs share a scale.
    """
    ids_OBN, kept_OBN = slots.find_slots(mask_OI, n)
    codes_OBN = slots.take_slots(codes_OI, ids_OBN, kept_OBN)
    codes = slots.int_values(slots.to_superblocks(codes_OBN)).view(np.uint8) & 15
    half = slots.STEP // 2
    nibbles = codes[..., :half] | (codes[..., half:] << 4)
    ids = slots.int_ids(slots.to_superblocks(ids_OBN))
    return {
        "blocks": np.concatenate([ids, nibbles], axis=3),
        "scales": pack_scales(pad_to(scales_OG, 1, GROUP // width)),
    }


def _codes_int4(arrays: Arrays, shape: tuple[int, int], xp: Any) -> Any:
    blocks = arrays["blocks"]
    ids = slots.split_int_ids(blocks[..., : slots.ID_BYTES], xp)
    nibbles = blocks[..., slots.ID_BYTES :]
    bits = xp.concatenate([nibbles & 15, nibbles >> 4], axis=-1)
    codes = slots.split_int_values((bits ^ 8).astype(xp.int8) - 8, xp)
    ids_OBN = slots.from_superblocks(ids, shape)
    return slots.place(ids_OBN, slots.from_superblocks(codes, shape), xp)


def _unpack_int4(arrays: Arrays, shape: tuple[int, int]) -> np.ndarray:
    scales_OG = unpack_scales(arrays["scales"], shape[0])
    width = scale_inputs(shape[1], scales_OG.shape[1])
    return scale_groups(_codes_int4(arrays, shape, np), scales_OG, width=width)


def _dot_int4(x_BI: jax.Array, arrays: Arrays, shape: tuple[int, int]) -> jax.Array:
    codes_OI = _codes_int4(arrays, shape, jnp)
    scales_OG = unpack_scales(arrays["scales"], shape[0])
    width = scale_inputs(shape[1], scales_OG.shape[1])
    return grouped_dot(x_BI, codes_OI, scales_OG, width=width)


def _specs_int4(shape: tuple[int, int]) -> dict[str, ArraySpec]:
    scales = ArraySpec(dtype="bfloat16", shape=(panels(shape[0]), None, PANEL))
    return {**slots.specs(shape, slots.STEP // 2), "scales": scales}


def _pack_int8(w_OI: np.ndarray, mask_OI: np.ndarray, n: int) -> Arrays:
    return pack_int8(*quantize_rows(np.where(mask_OI, w_OI, 0)), mask_OI, n)


def _pack_int4(w_OI: np.ndarray, mask_OI: np.ndarray, n: int) -> Arrays:
    return pack_int4(*quantize_groups(np.where(mask_OI, w_OI, 0)), mask_OI, n)


N16_INT8 = Format(
    name="n16_int8",
    max_inputs=MAX_INT8_INPUTS,
    dtype="int8",
    lossless=False,
    panel_wise=True,
    summary="N of every 16 inputs, int8, a scale per row",
    input_multiple=slots.BLOCK,
    pack=_pack_int8,
    plan=slots.plan,
    unpack=_unpack_int8,
    reference=_dot_int8,
    array_specs=_specs_int8,
    expected_bits=lambda n_out, n_in, density: 12 * density + 32 / n_in,
)
"""`blocks` uint8 [panels, superblocks, N, 96], `scales` float32 [panels, 16].

A step is 32 bytes of ids and 64 int8 codes in the int order of `n16/slots.py`. w =
code * scale, scale = max|w| / 127 of a row, codes rounded half to even. Activations are
quantised as in `quantize_activations`.
"""

N16_INT4 = Format(
    name="n16_int4",
    dtype="int4",
    lossless=False,
    panel_wise=True,
    summary="N of every 16 inputs, int4, a bfloat16 scale per 128 inputs",
    input_multiple=slots.BLOCK,
    pack=_pack_int4,
    plan=slots.plan,
    unpack=_unpack_int4,
    reference=_dot_int4,
    array_specs=_specs_int4,
    expected_bits=lambda n_out, n_in, density: 8 * density + 16 / GROUP,
)
"""`blocks` uint8 [panels, superblocks, N, 64], `scales` bfloat16 [panels, groups, 16].

A step is 32 bytes of ids in the int order of `n16/slots.py` and 32 bytes of codes in
4-bit two's complement: the low nibbles are values 0 to 31 of that order, the high ones
32 to 63. A group is 128 inputs; where a checkpoint brings scales of 64, there are two
groups for each 128. w = code * scale, scale = max|w| / 7 of the group, codes -7 to 7
rounded half to even (-8 where a checkpoint brings it). Activations are quantised as in
`quantize_activations`.
"""
