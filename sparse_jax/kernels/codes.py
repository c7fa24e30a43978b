"""Quantised matrices taken over from elsewhere, without rounding them again."""

import ml_dtypes
import numpy as np
from jaxtyping import Bool, Float, Int8

from sparse_jax.kernels.dense import groups as dense_groups
from sparse_jax.kernels.dense import ints as dense
from sparse_jax.kernels.ell import int8 as ell
from sparse_jax.kernels.format import Arrays
from sparse_jax.kernels.group import u8
from sparse_jax.kernels.group.build import from_codes
from sparse_jax.kernels.group.layout import GROUP as KEPT_GROUP
from sparse_jax.kernels.group.layout import MIDDLE
from sparse_jax.kernels.n16 import ints as n16
from sparse_jax.kernels.packed import Packed
from sparse_jax.kernels.quantize import GROUP
from sparse_jax.kernels.registry import find_format
from sparse_jax.types import InputError

WIDTHS: dict[str, tuple[int, ...]] = {
    "dense_int8": (),
    "n16_int8": (),
    "ell_int8": (),
    "dense_int4": (GROUP, 64, 32),
    "n16_int4": (GROUP, 64),
    "dense_int2": (dense_groups.SHORT_GROUP,),
    "group_int4": (KEPT_GROUP,),
    "group_int4_u8": (KEPT_GROUP,),
}
"""Inputs that may share a scale in the quantised types; none: all of a row do."""

_LIMITS = {"int8": (-128, 127), "int4": (-8, 7), "int2": (-2, 1)}
_WITH_ZEROS = ("dense_int4", "dense_int2", "group_int4", "group_int4_u8")


def holds_codes(
    format: str,
    codes_OI: Int8[np.ndarray, "out in"],
    scales_OS: Float[np.ndarray, "out scales"],
    width: int,
    zeros_OS: Int8[np.ndarray, "out zeros"] | None = None,
) -> str | None:
    """Why a type cannot hold codes and scales exactly; None where it can.

    Args:
      format: a quantised one.
      codes_OI: see `pack_codes`.
      scales_OS: see `pack_codes`.
      width: see `pack_codes`.
      zeros_OS: see `pack_codes`.
    """
    own = WIDTHS[format]
    if _own_width(format, width) is None:
        *most, last = (str(n) for n in sorted(own)) if own else ("row",)
        held = f"{', '.join(most)} or {last}" if most else last
        held += " inputs" if own else ""
        return f"has a scale for each {held}, not for each {width} inputs"
    codes_OI, zeros_OS = _without_zeros(format, codes_OI, zeros_OS, width)
    low, high = _LIMITS[find_format(format).dtype]
    if zeros_OS is not None and format not in _WITH_ZEROS:
        return f"has no zero points, and code - zero is not always from {low} to {high}"
    held = "codes" if zeros_OS is None else "codes and zero points"
    for array in (codes_OI, codes_OI if zeros_OS is None else zeros_OS):
        if array.min(initial=0) < low or array.max(initial=0) > high:
            return f"holds {held} from {low} to {high}"
    stored = scales_OS.astype(ml_dtypes.bfloat16).astype(np.float32)
    if own and not np.array_equal(stored, scales_OS):
        return "stores scales in bfloat16, which would round these"
    if format == u8.NAME and u8.find_integers(scales_OS) is None:
        return "stores scales as integers up to 255 times a power of two of their row"
    return None


def pack_codes(
    format: str,
    codes_OI: Int8[np.ndarray, "out in"],
    scales_OS: Float[np.ndarray, "out scales"],
    mask_OI: Bool[np.ndarray, "out in"] | None = None,
    *,
    width: int = 0,
    zeros_OS: Int8[np.ndarray, "out zeros"] | None = None,
) -> Packed:
    """Stores a quantised matrix, w = scale (code - zero), exactly as it is.

    Where every code - zero is a code of the type, it is stored without zero points.

    Args:
      format: a quantised one.
      codes_OI: -128 to 127; the int4 types hold -8 to 7, the int2 type -2 to 1.
      scales_OS: float32, one for each `width` inputs, the last of a row perhaps fewer.
      mask_OI: True = kept; None keeps what is not 0.
      width: inputs that share a scale; 0 = all of a row.
      zeros_OS: zero points, counted as the codes are: where both are stored as 0 to
        2^b - 1, they are given less 2^(b-1) here. None = all 0.

    Raises:
      InputError: the type cannot hold the codes, the zero points, the scales or the
        pattern exactly; a scale is not finite.

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
    if zeros_OS is not None and zeros_OS.shape != scales_OS.shape:
        raise InputError(
            f"{format}: expected zero points of shape {list(scales_OS.shape)}, as the "
            f"scales, found {list(zeros_OS.shape)}"
        )
    if reason := holds_codes(format, codes_OI, scales_OS, width, zeros_OS):
        raise InputError(f"{format}: the matrix cannot be held exactly: it {reason}")
    codes_OI, zeros_OS = _without_zeros(format, codes_OI, zeros_OS, width)
    own = _own_width(format, width)
    if own:
        scales_OS = _repeat(scales_OS, n_in, width, own)
        zeros_OS = None if zeros_OS is None else _repeat(zeros_OS, n_in, width, own)
    nothing = 0 if zeros_OS is None else _expand(zeros_OS, n_in, own or n_in)
    mask_OI = codes_OI != nothing if mask_OI is None else mask_OI
    codes_OI = np.where(mask_OI, codes_OI, nothing).astype(np.int8)
    arrays = _pack(format, codes_OI, scales_OS, mask_OI, zeros_OS, own or 0)
    return Packed(format=format, shape=(n_out, n_in), arrays=arrays)


def code_differences(
    codes_OI: Int8[np.ndarray, "out in"],
    zeros_OS: Int8[np.ndarray, "out zeros"] | None,
    width: int,
) -> np.ndarray:
    """code - zero, int16 [out, in]; the codes themselves without zero points.

    Example:
      >>> code_differences(np.array([[3, -2]], np.int8), np.array([[-2]], np.int8), 0)
      array([[5, 0]], dtype=int16)
    """
    if zeros_OS is None:
        return codes_OI
    n_in = codes_OI.shape[1]
    return codes_OI - _expand(zeros_OS.astype(np.int16), n_in, width or n_in)


def _without_zeros(
    format: str, codes_OI: np.ndarray, zeros_OS: np.ndarray | None, width: int
) -> tuple[np.ndarray, np.ndarray | None]:
    """code - zero and None where the type holds them all as codes."""
    if zeros_OS is None:
        return codes_OI, None
    low, high = _LIMITS[find_format(format).dtype]
    differences_OI = code_differences(codes_OI, zeros_OS, width)
    if differences_OI.min(initial=0) < low or differences_OI.max(initial=0) > high:
        return codes_OI, zeros_OS
    return differences_OI.astype(np.int8), None


def _own_width(format: str, width: int) -> int | None:
    """The type's widest groups that lie inside of those given; None: there are none."""
    own = WIDTHS[format]
    if not own:
        return None if width else 0
    return next((n for n in own if width % n == 0), None)


def _expand(values_OS: np.ndarray, n_in: int, width: int) -> np.ndarray:
    return np.repeat(values_OS, width, axis=1)[:, :n_in]


def _repeat(values_OS: np.ndarray, n_in: int, width: int, own: int) -> np.ndarray:
    """A value for each `own` inputs of those for each `width`, or for a row."""
    repeats = (width or n_in + -n_in % own) // own
    return np.repeat(values_OS, repeats, axis=1)[:, : -(-n_in // own)]


def _pack(
    format: str,
    codes_OI: np.ndarray,
    scales_OS: np.ndarray,
    mask_OI: np.ndarray,
    zeros_OS: np.ndarray | None,
    width: int,
) -> Arrays:
    if format.startswith("group_"):
        return _pack_groups(format, codes_OI, scales_OS, mask_OI, zeros_OS)
    row_O = scales_OS[:, 0]
    return {
        "dense_int8": lambda: dense.pack_int8(codes_OI, row_O),
        "n16_int8": lambda: n16.pack_int8(codes_OI, row_O, mask_OI),
        "ell_int8": lambda: ell.pack_int8(codes_OI, row_O),
        "dense_int4": lambda: dense_groups.pack_int4(
            codes_OI, scales_OS, zeros_OS, width
        ),
        "n16_int4": lambda: n16.pack_int4(codes_OI, scales_OS, mask_OI, width=width),
        "dense_int2": lambda: dense_groups.pack_int2(codes_OI, scales_OS, zeros_OS),
    }[format]()


def _pack_groups(
    format: str,
    codes_OI: np.ndarray,
    scales_OG: np.ndarray,
    mask_OI: np.ndarray,
    zeros_OG: np.ndarray | None,
) -> Arrays:
    """Every group of 16 inputs with any kept weight."""
    codes_OGK = codes_OI.reshape(len(codes_OI), -1, KEPT_GROUP)
    kept_OG = np.asarray(mask_OI.reshape(codes_OGK.shape).any(-1))
    codes_NK, zeros_N = codes_OGK[kept_OG], None
    if zeros_OG is not None:
        codes_NK, zeros_N = codes_NK + MIDDLE, zeros_OG[kept_OG] + MIDDLE
    units_O = None
    if format == u8.NAME:
        found = u8.find_integers(scales_OG)
        assert found is not None, "holds_codes has looked"
        scales_OG, units_O = found
    return from_codes(kept_OG, codes_NK, scales_OG[kept_OG], zeros_N, units_O).arrays
