"""Quantised matrices taken over from elsewhere, without rounding them again."""

import ml_dtypes
import numpy as np
from jaxtyping import Bool, Float, Int8

from sparse_jax.kernels.dense import ints as dense
from sparse_jax.kernels.ell import int8 as ell
from sparse_jax.kernels.group.build import from_codes
from sparse_jax.kernels.group.layout import GROUP as SHORT_GROUP
from sparse_jax.kernels.n16 import ints as n16
from sparse_jax.kernels.packed import Packed
from sparse_jax.kernels.quantize import GROUP
from sparse_jax.kernels.registry import find_format
from sparse_jax.types import InputError

WIDTHS = {
    "dense_int8": 0,
    "n16_int8": 0,
    "ell_int8": 0,
    "dense_int4": GROUP,
    "n16_int4": GROUP,
    "group_int4": SHORT_GROUP,
}
"""Inputs that share a scale in the quantised types; 0 = all of a row."""


def holds_codes(
    format: str,
    codes_OI: Int8[np.ndarray, "out in"],
    scales_OS: Float[np.ndarray, "out scales"],
    width: int,
) -> str | None:
    """Why a type cannot hold codes and scales exactly; None where it can.

    Args:
      format: a quantised one.
      codes_OI: see `pack_codes`.
      scales_OS: see `pack_codes`.
      width: see `pack_codes`.
    """
    own = WIDTHS[format]
    if width and (not own or width % own):
        held = f"each {own} inputs" if own else "each row"
        return f"has a scale for {held}, not for each {width} inputs"
    if own and (codes_OI.min(initial=0) < -8 or codes_OI.max(initial=0) > 7):
        return "holds codes from -8 to 7"
    stored = scales_OS.astype(ml_dtypes.bfloat16).astype(np.float32)
    if own and not np.array_equal(stored, scales_OS):
        return "stores scales in bfloat16, which would round these"
    return None


def pack_codes(
    format: str,
    codes_OI: Int8[np.ndarray, "out in"],
    scales_OS: Float[np.ndarray, "out scales"],
    mask_OI: Bool[np.ndarray, "out in"] | None = None,
    *,
    width: int = 0,
) -> Packed:
    """Stores a quantised matrix, w = code * scale, exactly as it is.

    Args:
      format: a quantised one.
      codes_OI: -128 to 127; the int4 types hold -8 to 7.
      scales_OS: float32, one for each `width` inputs, the last of a row perhaps fewer.
      mask_OI: True = kept; None keeps the codes that are not 0.
      width: inputs that share a scale; 0 = all of a row.

    Raises:
      InputError: the type cannot hold the codes, the scales or the pattern exactly; a
        scale is not finite.

    Example:
      >>> codes_OI = np.array([[-128, 3, 0]], np.int8)
      >>> leaf = pack_codes("dense_int8", codes_OI, np.array([[0.5]], np.float32))
      >>> leaf.unpack().tolist()
      [[-64.0, 1.5, 0.0]]
    """
    kind = find_format(format)
    kind.check_shape(codes_OI.shape)
    if format not in WIDTHS:
        raise InputError(f"{format}: stores {kind.dtype} weights, not integer codes")
    n_out, n_in = codes_OI.shape
    count = -(-n_in // (width or n_in))
    if scales_OS.shape != (n_out, count) or not np.isfinite(scales_OS).all():
        raise InputError(
            f"{format}: expected finite scales of shape {[n_out, count]}, found shape "
            f"{list(scales_OS.shape)}"
        )
    if reason := holds_codes(format, codes_OI, scales_OS, width):
        raise InputError(f"{format}: the matrix cannot be held exactly: it {reason}")
    mask_OI = codes_OI != 0 if mask_OI is None else mask_OI
    codes_OI = np.where(mask_OI, codes_OI, np.int8(0))
    if own := WIDTHS[format]:
        repeats = (width or n_in + -n_in % own) // own
        scales_OS = np.repeat(scales_OS, repeats, axis=1)[:, : -(-n_in // own)]
    if format == "group_int4":
        return _pack_groups(codes_OI, scales_OS, mask_OI)
    arrays = {
        "dense_int8": lambda: dense.pack_int8(codes_OI, scales_OS[:, 0]),
        "n16_int8": lambda: n16.pack_int8(codes_OI, scales_OS[:, 0], mask_OI),
        "ell_int8": lambda: ell.pack_int8(codes_OI, scales_OS[:, 0]),
        "dense_int4": lambda: dense.pack_int4(codes_OI, scales_OS),
        "n16_int4": lambda: n16.pack_int4(codes_OI, scales_OS, mask_OI),
    }[format]()
    return Packed(format=format, shape=(n_out, n_in), arrays=arrays)


def _pack_groups(
    codes_OI: np.ndarray, scales_OG: np.ndarray, mask_OI: np.ndarray
) -> Packed:
    """group_int4: every group of 16 inputs with any kept weight."""
    codes_OGK = codes_OI.reshape(len(codes_OI), -1, SHORT_GROUP)
    kept_OG = np.asarray(mask_OI.reshape(codes_OGK.shape).any(-1))
    return from_codes(kept_OG, codes_OGK[kept_OG], scales_OG[kept_OG])
