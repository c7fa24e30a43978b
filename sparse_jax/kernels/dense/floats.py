"""Dense floats in panels of 16 outputs, the 16 weights of one input side by side."""

from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
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


def _pack_float32(w_OI: np.ndarray, mask_OI: np.ndarray) -> Arrays:
    w_PRI = to_panels(np.where(mask_OI, w_OI, 0).astype(np.float32))
    return {"values": np.ascontiguousarray(w_PRI.transpose(0, 2, 1))}


def _weights_float32(arrays: Arrays, shape: tuple[int, int]) -> Any:
    return from_panels(arrays["values"].transpose(0, 2, 1), shape[0])


def _unpack_float32(arrays: Arrays, shape: tuple[int, int]) -> np.ndarray:
    return np.ascontiguousarray(_weights_float32(arrays, shape))


def _dot_float32(x_BI: jax.Array, arrays: Arrays, shape: tuple[int, int]) -> jax.Array:
    return jnp.einsum("bi,oi->bo", x_BI, _weights_float32(arrays, shape))


def _pack_bfloat16(w_OI: np.ndarray, mask_OI: np.ndarray) -> Arrays:
    w_OI = np.where(mask_OI, w_OI, 0).astype(ml_dtypes.bfloat16)
    w_PRI = to_panels(pad_to(w_OI, 1, 2))
    w_PRIJ = w_PRI.reshape(*w_PRI.shape[:2], -1, 2)
    return {"values": np.ascontiguousarray(w_PRIJ.transpose(0, 2, 1, 3))}


def _weights_bfloat16(arrays: Arrays, shape: tuple[int, int]) -> Any:
    values = arrays["values"]
    w_PRI = values.swapaxes(1, 2).reshape(values.shape[0], PANEL, -1)
    return from_panels(w_PRI, shape[0])[:, : shape[1]].astype(np.float32)


def _dot_bfloat16(x_BI: jax.Array, arrays: Arrays, shape: tuple[int, int]) -> jax.Array:
    return jnp.einsum("bi,oi->bo", x_BI, _weights_bfloat16(arrays, shape))


def _specs_bfloat16(shape: tuple[int, int]) -> dict[str, ArraySpec]:
    size = (panels(shape[0]), panels(shape[1], 2), PANEL, 2)
    return {"values": ArraySpec(dtype="bfloat16", shape=size)}


DENSE_FLOAT32 = Format(
    name="dense_float32",
    dtype="float32",
    lossless=True,
    panel_wise=True,
    summary="dense, 32 bits",
    pack=_pack_float32,
    unpack=_unpack_float32,
    reference=_dot_float32,
    array_specs=lambda shape: {
        "values": ArraySpec(dtype="float32", shape=(panels(shape[0]), shape[1], PANEL))
    },
    expected_bits=lambda n_out, n_in, density: 32.0,
)
"""`values` float32 [panels, in, 16]: values[p, i, r] = w[16 p + r, i]."""

DENSE_BFLOAT16 = Format(
    name="dense_bfloat16",
    dtype="bfloat16",
    lossless=True,
    panel_wise=True,
    summary="dense, 16 bits",
    pack=_pack_bfloat16,
    unpack=_weights_bfloat16,
    reference=_dot_bfloat16,
    array_specs=_specs_bfloat16,
    expected_bits=lambda n_out, n_in, density: 16.0,
)
"""`values` bfloat16 [panels, ceil(in / 2), 16, 2]: values[p, i, r, j] is
w[16 p + r, 2 i + j] rounded half to even. Activations and sums are float32."""
