"""Dense int8 with a scale per output."""

from typing import Any

import jax
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
from sparse_jax.kernels.quantize import quantize_rows, quantized_dot


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
