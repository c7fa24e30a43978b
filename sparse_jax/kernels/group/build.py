"""Other ways to make a group_int4 leaf: with zero points, or from given codes."""

import ml_dtypes
import numpy as np
from jaxtyping import Bool, Float, Integer

from sparse_jax.kernels.group.int4 import GROUP_INT4, encode_groups, pack_arrays
from sparse_jax.kernels.group.layout import GROUP
from sparse_jax.kernels.packed import Packed
from sparse_jax.types import InputError

NAME = GROUP_INT4.name


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
    return Packed(format=NAME, shape=tuple(w_OI.shape), arrays=arrays)


def from_codes(
    kept_OG: Bool[np.ndarray, "out groups"],
    codes_NK: Integer[np.ndarray, "codes group"],
    scales_N: Float[np.ndarray, " scales"],
    zeros_N: Integer[np.ndarray, " zeros"] | None = None,
) -> Packed:
    """Takes over the codes and scales of a quantised matrix as they are.

    Codes and zero points are stored exactly, scales as bfloat16: exactly where they
    are, with a relative error of at most 2^-8 otherwise.

    Args:
      kept_OG: which groups of 16 inputs every output keeps.
      codes_NK: the codes of the kept groups, ordered by output, then by input: -8 to 7,
        or 0 to 15 with zero points.
      scales_N: their scales.
      zeros_N: their zero points, 0 to 15, where w = scale (code - zero).

    Raises:
      InputError: the arrays do not fit together, or a number is out of range.

    Example:
      >>> codes_NK = np.arange(-8, 8, dtype=np.int8)[None]
      >>> leaf = from_codes(np.array([[False, True]]), codes_NK, np.array([0.5]))
      >>> leaf.unpack()[0, 16:].tolist() == (codes_NK[0] / 2).tolist()
      True
    """
    n = int(kept_OG.sum())
    zeros = [] if zeros_N is None else [("zeros_N", zeros_N, (n,), 0, 15)]
    low, high = (-8, 7) if zeros_N is None else (0, 15)
    limit = float(ml_dtypes.finfo(ml_dtypes.bfloat16).max)
    for name, array, shape, least, most in [
        ("codes_NK", codes_NK, (n, GROUP), low, high),
        ("scales_N", scales_N, (n,), 0, limit),
        *zeros,
    ]:
        if array.shape != shape:
            raise InputError(
                f"{NAME}: kept_OG keeps {n} groups, so {name} must have the shape "
                f"{list(shape)}, found {list(array.shape)}"
            )
        if not np.all((array >= least) & (array <= most)):
            raise InputError(
                f"{NAME}: {name} must lie between {least} and {most:g}, found "
                f"{array.min()} to {array.max()}"
            )
    scales_N = scales_N.astype(ml_dtypes.bfloat16).astype(np.float32)
    arrays = encode_groups(kept_OG, codes_NK.astype(np.int16), scales_N, zeros_N)
    shape = (kept_OG.shape[0], kept_OG.shape[1] * GROUP)
    return Packed(format=NAME, shape=shape, arrays=arrays)
