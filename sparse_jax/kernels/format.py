"""What a storage format is: functions that pack, unpack and multiply."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from sparse_jax.types import InputError

PANEL = 16
"""Outputs of one panel, inputs of one input panel: the unit of contextual selection."""

MAX_INT8_INPUTS = 1 << 17
"""A row's products of int8 codes, at most 128 * 127 each, are added up in int32."""

Arrays = dict[str, Any]
"""The arrays of one leaf by name, numpy or JAX."""


@dataclass(frozen=True, kw_only=True)
class ArraySpec:
    """Dtype and shape of one array of a format; the leaf chooses the sizes None."""

    dtype: str
    shape: tuple[int | None, ...]
    optional: bool = False


@dataclass(frozen=True, kw_only=True)
class Format:
    """One storage type for a matrix [out, in].

    Attributes:
      name: of the type, as in `FORMATS`.
      dtype: of the stored weights: float32, bfloat16, int8 or int4.
      lossless: whether unpacking gives back weights of that dtype bit for bit.
      summary: one line for tables.
      input_multiple: `in` must be a multiple of it.
      max_inputs: the largest `in`.
      pack: (w_OI float32, mask_OI bool) -> arrays; True = kept. Gets what `plan` said
        as keywords.
      unpack: (arrays, (out, in)) -> w_OI float32.
      reference: (x_BI, arrays, (out, in)) -> y_BO, in plain JAX.
      array_specs: (out, in) -> the arrays, in the order of the native kernels.
      plan: (mask_OI) -> what must be known of the whole matrix before a part of it can
        be packed.
      panel_wise: whether every array has panels as its first axis, so that a matrix may
        be packed some panels at a time.
      expected_bits: (out, in, density) -> bits per weight by the type's definition,
        scales and indices included.
    """

    name: str
    dtype: str
    lossless: bool
    summary: str
    pack: Callable[..., Arrays]
    unpack: Callable[[Arrays, tuple[int, int]], np.ndarray]
    reference: Callable[[jax.Array, Arrays, tuple[int, int]], jax.Array]
    array_specs: Callable[[tuple[int, int]], dict[str, ArraySpec]]
    expected_bits: Callable[[int, int, float], float]
    plan: Callable[[np.ndarray], dict[str, Any]] = lambda mask_OI: {}
    panel_wise: bool = False
    input_multiple: int = 1
    max_inputs: int = 1 << 28

    def check_shape(self, shape: tuple[int, int]) -> None:
        """Raises InputError unless the type can hold a matrix of this shape."""
        if len(shape) != 2 or min(shape) < 1:
            raise InputError(
                f"{self.name}: expected a matrix [out, in], found shape {list(shape)}"
            )
        if shape[1] % self.input_multiple:
            raise InputError(
                f"{self.name}: the inputs must be a multiple of {self.input_multiple}, "
                f"found {shape[1]}; choose another format for this matrix"
            )
        if shape[1] > self.max_inputs:
            raise InputError(
                f"{self.name}: expected at most {self.max_inputs} inputs, whose "
                f"products int32 holds, found {shape[1]}; choose another format for "
                "this matrix"
            )


def pad_to(array: np.ndarray, axis: int, multiple: int) -> np.ndarray:
    """Zeros at the end of an axis, up to a multiple.

    Example:
      >>> pad_to(np.ones((2, 3)), 1, 4).shape
      (2, 4)
    """
    missing = -array.shape[axis] % multiple
    if not missing:
        return array
    widths = [(0, 0)] * array.ndim
    widths[axis] = (0, missing)
    return np.pad(array, widths)


def panels(n: int, size: int = PANEL) -> int:
    """Panels of 16 that cover `n`."""
    return math.ceil(n / size)


def to_panels(array_O: np.ndarray) -> np.ndarray:
    """[out, ...] -> [panels, 16, ...], the last panel padded with zeros."""
    padded = pad_to(array_O, 0, PANEL)
    return padded.reshape(-1, PANEL, *padded.shape[1:])


def from_panels(array_PR: Any, n_out: int) -> Any:
    """[panels, 16, ...] -> [out, ...]; the inverse of `to_panels`."""
    return array_PR.reshape(-1, *array_PR.shape[2:])[:n_out]
