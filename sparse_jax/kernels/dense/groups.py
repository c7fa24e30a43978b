"""Dense codes of 4 and of 2 bits, a scale for each group of inputs."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sparse_jax.kernels.format import (
    PANEL,
    Arrays,
    ArraySpec,
    Format,
    from_panels,
    pad_to,
    panels,
    to_panels,
)
from sparse_jax.kernels.quantize import (
    GROUP,
    grouped_dot,
    pack_scales,
    quantize_groups,
    round_asymmetric,
    scale_groups,
    scale_inputs,
    unpack_scales,
)

SHORT_GROUP = 64
"""Inputs that share a scale and a zero point in dense_int2."""


def pack_int4(
    codes_OI: np.ndarray,
    scales_OG: np.ndarray,
    zeros_OG: np.ndarray | None = None,
    width: int = GROUP,
) -> Arrays:
    """The arrays of dense_int4 from codes and zero points, both from -8 to 7.

    `width`, 32, 64 or 128, inputs share a scale [out, ceil(in / width)].
    """
    several = GROUP // width
    arrays = {
        "codes": _pack_codes(codes_OI, 4, GROUP),
        "scales": pack_scales(pad_to(scales_OG, 1, several)),
    }
    if zeros_OG is not None:
        arrays["zeros"] = _pack_zeros(pad_to(zeros_OG, 1, several), 4)
    return arrays


def pack_int2(
    codes_OI: np.ndarray, scales_OG: np.ndarray, zeros_OG: np.ndarray | None = None
) -> Arrays:
    """The arrays of dense_int2 from codes and zero points, both from -2 to 1.

    Zero points are all 0 where they are None.
    """
    if zeros_OG is None:
        zeros_OG = np.zeros(scales_OG.shape, np.int8)
    return {
        "codes": _pack_codes(codes_OI, 2, SHORT_GROUP),
        "scales": pack_scales(scales_OG),
        "zeros": _pack_zeros(zeros_OG, 2),
    }


def _pack_codes(codes_OI: np.ndarray, bits: int, multiple: int) -> np.ndarray:
    """uint8 [panels, steps, 16, 4]; the lowest bits hold the first four of a step."""
    unsigned_OI = (pad_to(codes_OI, 1, multiple) + (1 << bits - 1)).astype(np.uint8)
    fields_OTKJ = unsigned_OI.reshape(len(codes_OI), -1, 8 // bits, 4)
    bytes_OTJ = np.zeros((*fields_OTKJ.shape[:2], 4), np.uint8)
    for k in range(8 // bits):
        bytes_OTJ |= fields_OTKJ[:, :, k] << (bits * k)
    return np.ascontiguousarray(to_panels(bytes_OTJ).swapaxes(1, 2))


def _unpack_codes(arrays: Arrays, shape: tuple[int, int], bits: int, xp: Any) -> Any:
    bytes_PRTJ = arrays["codes"].swapaxes(1, 2)
    fields = [bytes_PRTJ >> (bits * k) & ((1 << bits) - 1) for k in range(8 // bits)]
    unsigned = xp.stack(fields, axis=3).astype(xp.int8)
    codes_PRI = unsigned.reshape(*unsigned.shape[:2], -1) - (1 << bits - 1)
    return from_panels(codes_PRI, shape[0])[:, : shape[1]]


def _pack_zeros(zeros_OG: np.ndarray, bits: int) -> np.ndarray:
    """uint32 [panels, groups, bits / 2]; the lowest bits hold the first output's."""
    zeros_PGR = to_panels(zeros_OG + (1 << bits - 1)).swapaxes(1, 2)
    zeros_PGWK = zeros_PGR.astype(np.uint32).reshape(
        *zeros_PGR.shape[:2], -1, 32 // bits
    )
    places_K = np.arange(0, 32, bits, dtype=np.uint32)
    return np.bitwise_or.reduce(zeros_PGWK << places_K, axis=3)


def _unpack_zeros(zeros_PGW: Any, n_out: int, bits: int, xp: Any) -> Any:
    """The inverse of `_pack_zeros`, int32 [out, groups]."""
    places_K = xp.arange(0, 32, bits, dtype=xp.uint32)
    zeros_PGWK = zeros_PGW[..., None] >> places_K & xp.uint32((1 << bits) - 1)
    zeros_PGR = zeros_PGWK.astype(xp.int32).reshape(*zeros_PGW.shape[:2], PANEL)
    return from_panels(zeros_PGR.swapaxes(1, 2), n_out) - (1 << bits - 1)


def _take_apart(
    arrays: Arrays, shape: tuple[int, int], bits: int, xp: Any
) -> tuple[Any, Any, Any, int]:
    """Codes [out, in], scales and zero points [out, groups], and inputs of a group."""
    scales_OG = unpack_scales(arrays["scales"], shape[0])
    width = SHORT_GROUP if bits == 2 else scale_inputs(shape[1], scales_OG.shape[1])
    zeros_OG = None
    if "zeros" in arrays:
        zeros_OG = _unpack_zeros(arrays["zeros"], shape[0], bits, xp)
    return _unpack_codes(arrays, shape, bits, xp), scales_OG, zeros_OG, width


def _unpack(arrays: Arrays, shape: tuple[int, int], bits: int) -> np.ndarray:
    return scale_groups(*_take_apart(arrays, shape, bits, np))


def _dot(
    x_BI: jax.Array, arrays: Arrays, shape: tuple[int, int], bits: int
) -> jax.Array:
    return grouped_dot(x_BI, *_take_apart(arrays, shape, bits, jnp))


def _pack_weights_int4(w_OI: np.ndarray, mask_OI: np.ndarray) -> Arrays:
    return pack_int4(*quantize_groups(np.where(mask_OI, w_OI, 0)))


def _pack_weights_int2(w_OI: np.ndarray, mask_OI: np.ndarray) -> Arrays:
    w_OGK = pad_to(np.where(mask_OI, w_OI, 0), 1, SHORT_GROUP)
    w_OGK = w_OGK.reshape(len(w_OI), -1, SHORT_GROUP)
    codes_OGK, scales_OG, zeros_OG = round_asymmetric(w_OGK, 2)
    codes_OI = codes_OGK.reshape(len(w_OI), -1)[:, : w_OI.shape[1]]
    return pack_int2(codes_OI - 2, scales_OG, zeros_OG - 2)


def _specs(
    shape: tuple[int, int], bits: int, group: int, groups: int | None
) -> dict[str, ArraySpec]:
    n_panels, steps = panels(shape[0]), panels(shape[1], group) * group * bits // 32
    return {
        "codes": ArraySpec(dtype="uint8", shape=(n_panels, steps, PANEL, 4)),
        "scales": ArraySpec(dtype="bfloat16", shape=(n_panels, groups, PANEL)),
        "zeros": ArraySpec(
            dtype="uint32", shape=(n_panels, groups, bits // 2), optional=bits == 4
        ),
    }


DENSE_INT4 = Format(
    name="dense_int4",
    dtype="int4",
    lossless=False,
    panel_wise=True,
    summary="dense, int4, a bfloat16 scale per 128 inputs",
    pack=_pack_weights_int4,
    unpack=partial(_unpack, bits=4),
    reference=partial(_dot, bits=4),
    array_specs=lambda shape: _specs(shape, 4, GROUP, None),
    expected_bits=lambda n_out, n_in, density: 4 + 16 / GROUP,
)
"""`codes` uint8 [panels, 16 ceil(in / 128), 16, 4]: byte [p, t, r, j] holds, as code +
8, w[16 p + r, 8 t + j] in its low nibble and w[16 p + r, 8 t + 4 + j] in its high one;
`scales` bfloat16 [panels, groups, 16]. A group is 128 inputs; where a checkpoint brings
scales of 64 or 32, there are two or four times ceil(in / 128) groups.

w = code * scale, scale = max|w| / 7 of a group, codes -7 to 7 rounded half to even (-8
where a checkpoint brings it). A checkpoint with zero points, w = scale (code - zero),
adds `zeros` uint32 [panels, groups, 2], 4 bits for each output as zero + 8. Activations
are quantised as in `quantize_activations`.
"""

DENSE_INT2 = Format(
    name="dense_int2",
    dtype="int2",
    lossless=False,
    panel_wise=True,
    summary="dense, int2, a bfloat16 scale and a zero point per 64 inputs",
    pack=_pack_weights_int2,
    unpack=partial(_unpack, bits=2),
    reference=partial(_dot, bits=2),
    array_specs=lambda shape: _specs(
        shape, 2, SHORT_GROUP, panels(shape[1], SHORT_GROUP)
    ),
    expected_bits=lambda n_out, n_in, density: 2 + (16 + 2) / SHORT_GROUP,
)
"""`codes` uint8 [panels, 4 groups, 16, 4]: byte [p, t, r, j] holds the codes of
w[16 p + r, 16 t + 4 k + j], 0 to 3, in its bits 2 k and 2 k + 1; `scales` bfloat16
[panels, groups, 16]; `zeros` uint32 [panels, groups, 1]: the zero point of output
16 p + r, 0 to 3, in bits 2 r and 2 r + 1. A group is 64 inputs.

w = scale (code - zero), scale = (max w - min w) / 3 of a group, zero = round(-min w /
scale), code = round(w / scale) + zero, half to even; max and min are taken with 0, so
that a pruned weight stays 0. 2 bits of code, 16 of scale and 2 of zero point for 64
inputs: 2.28 bits for each weight. Activations are quantised as in
`quantize_activations`.
"""
