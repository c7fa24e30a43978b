"""Other ways to make a group_int4 leaf: with zero points, or from given codes."""

import ml_dtypes
import numpy as np
from jaxtyping import Bool, Float, Integer, Num

from sparse_jax.kernels.group.int4 import GROUP_INT4, encode_groups, pack_arrays
from sparse_jax.kernels.group.layout import GROUP
from sparse_jax.kernels.group.u8 import GROUP_INT4_U8
from sparse_jax.kernels.packed import Packed
from sparse_jax.types import InputError


def pack_groups(
    w_OI: Float[np.ndarray, "out in"],
    mask_OI: Bool[np.ndarray, "out in"] | None = None,
    *,
    zero_point: bool = False,
) -> Packed:
    """Rounds a matrix to `group_int4`, with a zero point for every group if asked.

        symmetric    scale = max|w| / 7,            code = round(w / scale)
        zero point   scale = (max w - min w) / 15,  zero = round(-min w / scale),
                     code = round(w / scale) + zero         (max, min taken with 0)

    half to even, the scale rounded to bfloat16 first.

    Args:
      w_OI: the weights.
      mask_OI: True = kept; None keeps what is not zero.
      zero_point: whether to store one.

    Raises:
      InputError: the mask cuts groups, or `in` is not a multiple of 16.

    Example:
      >>> w_OI = np.linspace(0, 1.5, 16, dtype=np.float32)[None]
      >>> leaf = pack_groups(w_OI, zero_point=True)
      >>> float(np.abs(leaf.unpack() - w_OI).max()) < 0.005
      True
    """
    GROUP_INT4.check_shape(w_OI.shape)
    mask_OI = w_OI != 0 if mask_OI is None else mask_OI
    arrays = pack_arrays(w_OI, mask_OI, zero_point)
    return Packed(format=GROUP_INT4.name, shape=tuple(w_OI.shape), arrays=arrays)


def from_codes(
    kept_OG: Bool[np.ndarray, "out groups"],
    codes_NK: Integer[np.ndarray, "codes group"],
    scales_N: Num[np.ndarray, " scales"],
    zeros_N: Integer[np.ndarray, " zeros"] | None = None,
    row_scales_O: Float[np.ndarray, " rows"] | None = None,
) -> Packed:
    """Takes over the codes and scales of a quantised matrix as they are.

    Codes and zero points are stored exactly, scales as bfloat16: exactly where they
    are, with a relative error of at most 2^-8 otherwise. With scales of rows, too, the
    leaf is a `group_int4_u8`, which stores them all exactly.

    Args:
      kept_OG: which groups of 16 inputs every output keeps.
      codes_NK: the codes of the kept groups, ordered by output, then by input: -8 to 7,
        or 0 to 15 with zero points.
      scales_N: their scales; with `row_scales_O`, whole numbers up to 255.
      zeros_N: their zero points, 0 to 15, where w = scale (code - zero).
      row_scales_O: where w = row scale * scale (code - zero).

    Raises:
      InputError: the arrays do not fit together, or a number is out of range.

    Example:
      >>> codes_NK = np.arange(-8, 8, dtype=np.int8)[None]
      >>> leaf = from_codes(np.array([[False, True]]), codes_NK, np.array([0.5]))
      >>> leaf.unpack()[0, 16:].tolist() == (codes_NK[0] / 2).tolist()
      True
    """
    kind = GROUP_INT4 if row_scales_O is None else GROUP_INT4_U8
    n = int(kept_OG.sum())
    low, high = (-8, 7) if zeros_N is None else (0, 15)
    limit = float(ml_dtypes.finfo(ml_dtypes.bfloat16).max)
    _check(kind.name, kept_OG, "codes_NK", codes_NK, (n, GROUP), (low, high))
    if zeros_N is not None:
        _check(kind.name, kept_OG, "zeros_N", zeros_N, (n,), (0, 15))
    if row_scales_O is None:
        _check(kind.name, kept_OG, "scales_N", scales_N, (n,), (0, limit))
        scales_N = scales_N.astype(ml_dtypes.bfloat16).astype(np.float32)
    else:
        rows = kept_OG.shape[:1]
        _check(kind.name, kept_OG, "scales_N", scales_N, (n,), (0, 255))
        _check(kind.name, kept_OG, "row_scales_O", row_scales_O, rows, (0, limit))
        scales_N, row_scales_O = _whole(scales_N), row_scales_O.astype(np.float32)
    codes_NK = codes_NK.astype(np.int16)
    arrays = encode_groups(kept_OG, codes_NK, scales_N, zeros_N, row_scales_O)
    shape = (kept_OG.shape[0], kept_OG.shape[1] * GROUP)
    return Packed(format=kind.name, shape=shape, arrays=arrays)


def _check(
    kind: str,
    kept_OG: np.ndarray,
    name: str,
    array: np.ndarray,
    shape: tuple[int, ...],
    limits: tuple[int, int | float],
) -> None:
    """Raises InputError unless an array has this shape and lies inside the limits."""
    least, most = limits
    if array.shape != shape:
        raise InputError(
            f"{kind}: kept_OG keeps {kept_OG.sum()} groups in {len(kept_OG)} rows, so "
            f"{name} must have the shape {list(shape)}, found {list(array.shape)}"
        )
    if not np.all((array >= least) & (array <= most)):
        raise InputError(
            f"{kind}: {name} must lie between {least} and {most:g}, found "
            f"{array.min()} to {array.max()}"
        )


def _whole(scales_N: np.ndarray) -> np.ndarray:
    wrong_N = scales_N[scales_N != np.rint(scales_N)]
    if wrong_N.size:
        raise InputError(
            f"{GROUP_INT4_U8.name}: beside row_scales_O, scales_N must be whole "
            f"numbers, found {wrong_N[0]}"
        )
    return scales_N.astype(np.uint8)
