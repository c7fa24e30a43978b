"""Copies between the layout of files, [out, in], and that of leaves, [in, out]."""

import math

import numpy as np

# JAX takes over a NumPy buffer on CPU, without a copy, when it is this aligned.
_ALIGNMENT = 64

_STRIP = 16  # rows, the fastest for items of 1, 2 and 4 bytes


def aligned_empty(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """An uninitialised array that `jax.device_put` need not copy on CPU."""
    size = math.prod(shape) * dtype.itemsize
    raw = np.empty(size + _ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % _ALIGNMENT
    return raw[start : start + size].view(dtype).reshape(shape)


def copy_transposed(target: np.ndarray, source: np.ndarray) -> None:
    """Sets target = source.T, in the target's dtype, at near memory speed.

    A strip of rows stays in the cache while its columns are written, each as a piece
    of a cache line: some eight times faster than one assignment.
    """
    for start in range(0, len(source), _STRIP):
        rows = source[start : start + _STRIP].astype(target.dtype, copy=False)
        target[:, start : start + _STRIP] = rows.T


def transposed(source: np.ndarray) -> np.ndarray:
    """A contiguous source.T that `jax.device_put` need not copy on CPU."""
    target = aligned_empty(source.shape[::-1], source.dtype)
    copy_transposed(target, source)
    return target


def nonzero(weights: np.ndarray) -> np.ndarray:
    """weights != 0, for every float dtype of a checkpoint; NaN is not zero.

    Example:
      >>> nonzero(np.array([0.0, -0.0, 6e-8], np.float16)).tolist()
      [False, False, True]
    """
    if weights.dtype.itemsize == 2:  # the sign aside, zero has no bits: faster
        return (weights.view(np.uint16) & 0x7FFF) != 0
    return weights != 0
