"""N of every 16 inputs in floats: 4-bit ids gather float32 activations."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

from sparse_jax.kernels.format import Arrays, Format
from sparse_jax.kernels.n16 import slots


def _superblocks(
    w_OI: np.ndarray, mask_OI: np.ndarray, n: int
) -> tuple[np.ndarray, np.ndarray]:
    """Id bytes and values [panels, superblocks, N, ...] in float order."""
    ids_OBN, kept_OBN = slots.find_slots(mask_OI, n)
    values_OBN = slots.take_slots(w_OI, ids_OBN, kept_OBN)
    ids = slots.float_ids(slots.to_superblocks(ids_OBN))
    return ids, slots.float_values(slots.to_superblocks(values_OBN))


def _pack_float32(w_OI: np.ndarray, mask_OI: np.ndarray, n: int) -> Arrays:
    ids, values = _superblocks(w_OI, mask_OI, n)
    return {"blocks": np.concatenate([ids, values.view(np.uint8)], axis=3)}


def _pack_bfloat16(w_OI: np.ndarray, mask_OI: np.ndarray, n: int) -> Arrays:
    ids, values = _superblocks(w_OI.astype(ml_dtypes.bfloat16), mask_OI, n)
    pairs = values.reshape(*values.shape[:3], 2, 2, 2, 8).swapaxes(-1, -2)
    values = np.ascontiguousarray(pairs).reshape(values.shape)
    return {"blocks": np.concatenate([ids, values.view(np.uint8)], axis=3)}


def _weights(arrays: Arrays, shape: tuple[int, int], xp: Any, dtype: Any) -> Any:
    ids = slots.split_float_ids(arrays["blocks"][..., : slots.ID_BYTES], xp)
    stored = arrays["blocks"][..., slots.ID_BYTES :]
    values = stored.view(dtype)
    if dtype == ml_dtypes.bfloat16:
        pairs = values.reshape(*values.shape[:3], 2, 2, 8, 2)
        values = pairs.swapaxes(-1, -2).reshape(values.shape)
    placed = slots.place(
        slots.from_superblocks(ids, shape),
        slots.from_superblocks(slots.split_float_values(values, xp), shape),
        xp,
    )
    return placed.astype(np.float32)


def _dot(
    x_BI: jax.Array, arrays: Arrays, shape: tuple[int, int], dtype: Any
) -> jax.Array:
    return jnp.einsum("bi,oi->bo", x_BI, _weights(arrays, shape, jnp, dtype))


N16_FLOAT32 = Format(
    name="n16_float32",
    dtype="float32",
    lossless=True,
    panel_wise=True,
    summary="N of every 16 inputs, float32",
    input_multiple=slots.BLOCK,
    pack=_pack_float32,
    plan=slots.plan,
    unpack=partial(_weights, xp=np, dtype=np.float32),
    reference=partial(_dot, dtype=np.float32),
    array_specs=partial(slots.specs, value_bytes=4 * slots.STEP),
    expected_bits=lambda n_out, n_in, density: 36 * density,
)
"""`blocks` uint8 [panels, superblocks, N, 288]: a step is 32 bytes of ids and 64
float32 values in the float order of `n16/slots.py`."""

N16_BFLOAT16 = Format(
    name="n16_bfloat16",
    dtype="bfloat16",
    lossless=True,
    panel_wise=True,
    summary="N of every 16 inputs, bfloat16",
    input_multiple=slots.BLOCK,
    pack=_pack_bfloat16,
    plan=slots.plan,
    unpack=partial(_weights, xp=np, dtype=ml_dtypes.bfloat16),
    reference=partial(_dot, dtype=ml_dtypes.bfloat16),
    array_specs=partial(slots.specs, value_bytes=2 * slots.STEP),
    expected_bits=lambda n_out, n_in, density: 20 * density,
)
"""`blocks` uint8 [panels, superblocks, N, 160]: a step is 32 bytes of ids and 64
bfloat16 values in the float order of `n16/slots.py`, [half, j // 2, lane, j % 2] and
not [half, j, lane]. Activations and sums are float32."""
