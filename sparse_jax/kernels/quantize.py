"""Rounding to integers: weights by row or by group, activations by row of the batch."""

from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from jaxtyping import Array, Float, Int8

from sparse_jax.kernels.format import from_panels, to_panels
from sparse_jax.types import InputError

GROUP = 128
"""Inputs that share a scale in the int4 types, where a checkpoint brings no finer."""


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


def round_asymmetric(
    w_K: np.ndarray, bits: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Codes, scales and zero points of groups along the last axis.

        scale = (max w - min w) / (2^bits - 1),  zero = round(-min w / scale),
        code = round(w / scale) + zero                   (max, min taken with 0)

    half to even, the scale rounded to bfloat16 first.

    Returns:
      codes int8 like w, 0 to 2^bits - 1; scales float32; zeros int8.

    Example:
      >>> codes, scales, zeros = round_asymmetric(np.array([[-0.5, 0.0, 1.0]]), 2)
      >>> codes.tolist(), scales.tolist(), zeros.tolist()
      ([[0, 1, 3]], [0.5], [1])
    """
    last = (1 << bits) - 1
    low, high = w_K.min(axis=-1, initial=0.0), w_K.max(axis=-1, initial=0.0)
    scales = ((high - low) / last).astype(ml_dtypes.bfloat16).astype(np.float32)
    divisors = np.where(scales > 0, scales, 1)
    zeros = np.clip(np.rint(-low / divisors), 0, last)
    codes_K = np.rint(w_K / divisors[..., None]) + zeros[..., None]
    return np.clip(codes_K, 0, last).astype(np.int8), scales, zeros.astype(np.int8)


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


def scale_inputs(n_in: int, n_groups: int) -> int:
    """Inputs that share a scale, 128, 64 or 32; scales are for whole 128 inputs.

    Raises:
      InputError: no such number of groups fits the inputs.

    Example:
      >>> scale_inputs(200, 2), scale_inputs(200, 8)
      (128, 32)
    """
    wide = -(-n_in // GROUP)
    for several in (1, 2, 4):
        if n_groups == several * wide:
            return GROUP // several
    raise InputError(
        f"expected {wide}, {2 * wide} or {4 * wide} scales for each of the rows of "
        f"{n_in} inputs, found {n_groups}"
    )


def scale_groups(
    codes_OI: np.ndarray,
    scales_OG: np.ndarray,
    zeros_OG: np.ndarray | None = None,
    width: int = GROUP,
) -> np.ndarray:
    """scale (code - zero), a scale for every `width` inputs; zeros are 0 where None."""

    def expand(values_OG: np.ndarray) -> np.ndarray:
        return np.repeat(values_OG, width, axis=1)[:, : codes_OI.shape[1]]

    codes_OI = codes_OI.astype(np.float32)
    if zeros_OG is not None:
        codes_OI = codes_OI - expand(zeros_OG)
    return codes_OI * expand(scales_OG.astype(np.float32))


def grouped_dot(
    x_BI: Float[Array, "B in"],
    codes_OI: Any,
    scales_OG: Any,
    zeros_OG: Any | None = None,
    width: int = GROUP,
) -> Float[Array, "B out"]:
    """The reference of the grouped types: exact integer products by groups of inputs.

    y = scale_x * sum_g scale_w[g] * sum(code_x * (code_w - zero_w[g]) over the group g)
    """
    x_codes_BI, x_scale_B1 = quantize_activations(x_BI)
    padding = ((0, 0), (0, width * scales_OG.shape[1] - x_BI.shape[1]))
    x_BGI = jnp.pad(x_codes_BI, padding).reshape(x_BI.shape[0], -1, width)
    w_OGI = jnp.pad(codes_OI, padding).reshape(codes_OI.shape[0], -1, width)
    if zeros_OG is not None:
        w_OGI = w_OGI - zeros_OG[..., None].astype(jnp.int8)
    sums_BGO = jnp.einsum(
        "bgi,ogi->bgo", x_BGI, w_OGI, preferred_element_type=jnp.int32
    )
    scaled_BO = jnp.einsum("bgo,og->bo", sums_BGO.astype(jnp.float32), scales_OG)
    return scaled_BO * x_scale_B1
