"""Dense integers: int8 with a scale per output, int4 with one per 128 inputs."""

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
from sparse_jax.kernels.quantize import (
    GROUP,
    grouped_dot,
    pack_scales,
    quantize_groups,
    quantize_rows,
    quantized_dot,
    scale_groups,
    unpack_scales,
)


def pack_int8(codes_OI: np.ndarray, scales_O: np.ndarray) -> Arrays:
    """The arrays of dense_int8 from codes int8 [out, in] and scales float32 [out]."""
    codes_PRTJ = to_panels(pad_to(codes_OI, 1, 4).reshape(codes_OI.shape[0], -1, 4))
    codes = np.ascontiguousarray(codes_PRTJ.swapaxes(1, 2))
    return {"codes": codes, "scales": to_panels(scales_O.astype(np.float32))}


def _codes_int8(arrays: Arrays, shape: tuple[int, int]) -> Any:
    codes_PRTJ = arrays["codes"].swapaxes(1, 2)
    codes_PRI = codes_PRTJ.reshape(*codes_PRTJ.shape[:2], -1)
    return from_panels(codes_PRI, shape[0])[:, : shape[1]]


def _unpack_int8(arrays: Arrays, shape: tuple[int, int]) -> np.ndarray:
    return _codes_int8(arrays, shape) * from_panels(arrays["scales"], shape[0])[:, None]


def _dot_int8(x_BI: jax.Array, arrays: Arrays, shape: tuple[int, int]) -> jax.Array:
    scales_O = from_panels(arrays["scales"], shape[0])
    return quantized_dot(x_BI, _codes_int8(arrays, shape), scales_O)


def _specs_int8(shape: tuple[int, int]) -> dict[str, ArraySpec]:
    n_panels = panels(shape[0])
    codes = ArraySpec(dtype="int8", shape=(n_panels, panels(shape[1], 4), PANEL, 4))
    scales = ArraySpec(dtype="float32", shape=(n_panels, PANEL))
    return {"codes": codes, "scales": scales}


def pack_int4(codes_OI: np.ndarray, scales_OG: np.ndarray) -> Arrays:
    """The arrays of dense_int4 from codes -8 to 7 and scales [out, ceil(in / 128)]."""
    biased_OI = (pad_to(codes_OI, 1, GROUP) + 8).astype(np.uint8)
    biased_OTHJ = biased_OI.reshape(codes_OI.shape[0], -1, 2, 4)
    biased_OTHJ = pad_to(biased_OTHJ, 0, PANEL)
    bytes_OTJ = biased_OTHJ[:, :, 0] | (biased_OTHJ[:, :, 1] << 4)
    bytes_PTRJ = to_panels(bytes_OTJ).swapaxes(1, 2)
    return {
        "codes": np.ascontiguousarray(bytes_PTRJ),
        "scales": pack_scales(scales_OG),
    }


def _codes_int4(arrays: Arrays, shape: tuple[int, int], xp: Any) -> Any:
    bytes_PRTJ = arrays["codes"].swapaxes(1, 2)
    biased = xp.stack([bytes_PRTJ & 15, bytes_PRTJ >> 4], axis=3)
    codes_PRI = biased.reshape(*biased.shape[:2], -1).astype(xp.int8) - 8
    return from_panels(codes_PRI, shape[0])[:, : shape[1]]


def _unpack_int4(arrays: Arrays, shape: tuple[int, int]) -> np.ndarray:
    codes_OI = _codes_int4(arrays, shape, np)
    return scale_groups(codes_OI, unpack_scales(arrays["scales"], shape[0]))


def _dot_int4(x_BI: jax.Array, arrays: Arrays, shape: tuple[int, int]) -> jax.Array:
    codes_OI = _codes_int4(arrays, shape, jnp)
    return grouped_dot(x_BI, codes_OI, unpack_scales(arrays["scales"], shape[0]))


def _specs_int4(shape: tuple[int, int]) -> dict[str, ArraySpec]:
    n_panels, groups = panels(shape[0]), panels(shape[1], GROUP)
    codes = ArraySpec(dtype="uint8", shape=(n_panels, groups * 16, PANEL, 4))
    scales = ArraySpec(dtype="bfloat16", shape=(n_panels, groups, PANEL))
    return {"codes": codes, "scales": scales}


DENSE_INT8 = Format(
    name="dense_int8",
    max_inputs=MAX_INT8_INPUTS,
    dtype="int8",
    lossless=False,
    panel_wise=True,
    summary="dense, int8, a scale per row",
    pack=lambda w_OI, mask_OI: pack_int8(*quantize_rows(np.where(mask_OI, w_OI, 0))),
    unpack=_unpack_int8,
    reference=_dot_int8,
    array_specs=_specs_int8,
    expected_bits=lambda n_out, n_in, density: 8 + 32 / n_in,
)
"""`codes` int8 [panels, ceil(in / 4), 16, 4]: codes[p, t, r, j] is the code of
w[16 p + r, 4 t + j]; `scales` float32 [panels, 16]. w = code * scale, scale =
max|w| / 127 of a row, codes -127 to 127 rounded half to even. Activations are quantised
as in `quantize_activations`."""

DENSE_INT4 = Format(
    name="dense_int4",
    dtype="int4",
    lossless=False,
    panel_wise=True,
    summary="dense, int4, a bfloat16 scale per 128 inputs",
    pack=lambda w_OI, mask_OI: pack_int4(*quantize_groups(np.where(mask_OI, w_OI, 0))),
    unpack=_unpack_int4,
    reference=_dot_int4,
    array_specs=_specs_int4,
    expected_bits=lambda n_out, n_in, density: 4 + 16 / GROUP,
)
"""`codes` uint8 [panels, 16 groups, 16, 4]: byte [p, t, r, j] holds, as code + 8,
w[16 p + r, 8 t + j] in its low nibble and w[16 p + r, 8 t + 4 + j] in its high one;
`scales` bfloat16 [panels, groups, 16], a group is 128 inputs. w = code * scale, scale =
max|w| / 7 of a group, codes -7 to 7 rounded half to even (-8 where a checkpoint brings
it). Activations are quantised as in `quantize_activations`."""
