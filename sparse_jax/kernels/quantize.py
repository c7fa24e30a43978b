"""Rounding to integers: weights by row or by group, activations by row of the batch."""

from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from jaxtyping import Array, Float, Int8

from sparse_jax.kernels.format import from_panels, to_panels

GROUP = 128
"""Inputs that share a scale in the int4 types."""


def quantize_activations(
    x_BI: Float[Array, "B in"],
) -> tuple[Int8[Array, "B in"], Float[Array, "B 1"]]:
    """Symmetric int8 codes for every row alone, the integers of the native kernels.

        scale = max|x| / 127,   code = round(x * (127 / max|x|)), half to even

    A row with max|x| < 1e-30 counts as zero; one that is not finite has scale NaN.

    Example:
      >>> codes, scale = quantize_activations(jnp.array([[1.0, -0.5, 0.0]]))
      >>> codes.tolist()
      [[127, -64, 0]]
    """
    top_B1 = jnp.max(jnp.abs(x_BI), axis=1, keepdims=True, initial=0.0)
    finite_B1 = jnp.isfinite(top_B1)
    used_B1 = finite_B1 & (top_B1 >= 1e-30)
    inverse_B1 = jnp.where(used_B1, 127.0 / jnp.where(used_B1, top_B1, 1.0), 0.0)
    codes_BI = jnp.round(jnp.where(used_B1, x_BI, 0.0) * inverse_B1)
    scale_B1 = jnp.where(used_B1, top_B1 / 127.0, 0.0)
    scale_B1 = jnp.where(finite_B1, scale_B1, jnp.nan)
    return codes_BI.astype(jnp.int8), scale_B1


def quantize_rows(w_OI: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """int8 codes and one float32 scale per output, max|w| / 127, round half to even.

    Returns:
      codes int8 [out, in] from -127 to 127, and scales float32 [out].

    Example:
      >>> codes, scales = quantize_rows(np.array([[0.5, -1.27]], np.float32))
      >>> codes.tolist()
      [[50, -127]]
    """
    scale_O = (np.abs(w_OI).max(axis=1, initial=0.0) / 127).astype(np.float32)
    divisor_O = np.where(scale_O > 0, scale_O, 1)
    codes_OI = np.clip(np.rint(w_OI / divisor_O[:, None]), -127, 127)
    return codes_OI.astype(np.int8), scale_O


def quantize_groups(w_OI: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """int4 codes and one bfloat16 scale per 128 inputs, max|w| / 7, half to even.

    Returns:
      codes int8 [out, in] from -7 to 7, and scales bfloat16 [out, ceil(in / 128)].

    Example:
      >>> codes, scales = quantize_groups(np.array([[0.5, -1.75]], np.float32))
      >>> codes.tolist(), scales.tolist()
      ([[2, -7]], [[0.25]])
    """
    n_out, n_in = w_OI.shape
    padded_OI = np.pad(w_OI, ((0, 0), (0, -n_in % GROUP)))
    w_OGI = padded_OI.reshape(n_out, -1, GROUP)
    scale_OG = (np.abs(w_OGI).max(axis=2) / 7).astype(ml_dtypes.bfloat16)
    divisor_OG = scale_OG.astype(np.float32)
    divisor_OG = np.where(divisor_OG > 0, divisor_OG, 1)
    codes_OGI = np.clip(np.rint(w_OGI / divisor_OG[..., None]), -7, 7)
    return codes_OGI.reshape(n_out, -1)[:, :n_in].astype(np.int8), scale_OG


def quantized_dot(
    x_BI: Float[Array, "B in"],
    codes_OI: Any,
    scales_O: Any,
) -> Float[Array, "B out"]:
    """The reference of the int8 types: an exact integer product, then both scales.

    y = scale_x * scale_w * sum(code_x * code_w)
    """
    x_codes_BI, x_scale_B1 = quantize_activations(x_BI)
    sums_BO = jax.lax.dot_general(
        x_codes_BI,
        jnp.asarray(codes_OI),
        (((1,), (1,)), ((), ())),
        preferred_element_type=jnp.int32,
    )
    return sums_BO.astype(jnp.float32) * scales_O * x_scale_B1


def pack_scales(scales_OG: np.ndarray) -> np.ndarray:
    """Scales of groups as they are stored: bfloat16 [panels, groups, 16]."""
    scales_PRG = to_panels(scales_OG.astype(ml_dtypes.bfloat16))
    return np.ascontiguousarray(scales_PRG.swapaxes(1, 2))


def unpack_scales(scales_PGR: Any, n_out: int) -> Any:
    """The inverse of `pack_scales`, in float32 [out, groups]; NumPy or JAX."""
    return from_panels(scales_PGR.swapaxes(1, 2), n_out).astype(np.float32)


def scale_groups(codes_OI: np.ndarray, scales_OG: np.ndarray) -> np.ndarray:
    """code * scale, a scale for every 128 inputs: the inverse of `quantize_groups`."""
    scales_OI = np.repeat(scales_OG.astype(np.float32), GROUP, axis=1)
    return codes_OI * scales_OI[:, : codes_OI.shape[1]]


def grouped_dot(
    x_BI: Float[Array, "B in"],
    codes_OI: Any,
    scales_OG: Any,
) -> Float[Array, "B out"]:
    """The reference of the int4 types: exact integer products by groups of 128 inputs.

    y = scale_x * sum_g scale_w[g] * sum(code_x * code_w over the group g)
    """
    x_codes_BI, x_scale_B1 = quantize_activations(x_BI)
    padding = ((0, 0), (0, -x_BI.shape[1] % GROUP))
    x_BGI = jnp.pad(x_codes_BI, padding).reshape(x_BI.shape[0], -1, GROUP)
    w_OGI = jnp.pad(codes_OI, padding).reshape(codes_OI.shape[0], -1, GROUP)
    sums_BGO = jnp.einsum(
        "bgi,ogi->bgo", x_BGI, w_OGI, preferred_element_type=jnp.int32
    )
    scaled_BO = jnp.einsum("bgo,og->bo", sums_BGO.astype(jnp.float32), scales_OG)
    return scaled_BO * x_scale_B1
