"""One matrix in a storage format that a kernel multiplies by directly."""

from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np
from jaxtyping import Bool, Float

from sparse_jax.kernels.format import PANEL, Arrays, Format, panels
from sparse_jax.kernels.registry import find_format
from sparse_jax.types import InputError

# JAX takes these fields into the tree's structure instead of its leaves.
_STATIC = {"static": True}

_CHUNK = 2**20
"""Weights that are packed at a time."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Packed:
    """A matrix [out, in] in a storage format; a pytree whose leaves are its arrays.

    Attributes:
      format: name of the format, in `FORMATS`.
      shape: (out, in).
      arrays: what the format stores, by name.
    """

    format: str = field(metadata=_STATIC)
    shape: tuple[int, int] = field(metadata=_STATIC)
    arrays: dict[str, Any]

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        return sum(int(array.nbytes) for array in self.arrays.values())

    @property
    def bits_per_weight(self) -> float:
        """Bits for each of the out x in original weights, everything included."""
        return 8 * self.nbytes / (self.shape[0] * self.shape[1])

    def unpack(self) -> Float[np.ndarray, "out in"]:
        """The matrix in float32, with exact zeros where it is pruned."""
        arrays = {name: np.asarray(array) for name, array in self.arrays.items()}
        return find_format(self.format).unpack(arrays, self.shape)


def pack(
    format: str,
    w_OI: Float[np.ndarray, "out in"],
    mask_OI: Bool[np.ndarray, "out in"] | None = None,
) -> Packed:
    """Stores a matrix [out, in] in a format; quantised formats round to nearest.

    Args:
      format: a name in `FORMATS`.
      w_OI: the weights.
      mask_OI: True = kept; None keeps what is not zero.

    Raises:
      InputError: the format is unknown or cannot hold this matrix: a pattern that does
        not fit, an input size, a weight that is not finite.

    Example:
      >>> w_OI = np.where(np.arange(16) % 2, 1.0, 0.0).astype(np.float32)[None]
      >>> pack("n16_int8", w_OI).unpack().tolist() == w_OI.tolist()
      True
    """
    kind = find_format(format)
    kind.check_shape(w_OI.shape)
    mask_OI = w_OI != 0 if mask_OI is None else mask_OI
    try:
        arrays = _pack_parts(kind, w_OI, mask_OI)
    except InputError as error:
        raise InputError(f"{format}: the matrix cannot be held: {error}") from error
    return Packed(format=format, shape=tuple(w_OI.shape), arrays=arrays)


def _pack_parts(kind: Format, w_OI: np.ndarray, mask_OI: np.ndarray) -> Arrays:
    """Packs some panels at a time: what it needs beside its result stays small."""
    plan = kind.plan(mask_OI)
    n_out, n_in = w_OI.shape
    step = n_out
    if kind.panel_wise:
        step = min(n_out, max(1, _CHUNK // n_in // PANEL) * PANEL)
    arrays: Arrays = {}
    for start in range(0, n_out, step):
        rows = slice(start, start + step)
        _check_finite(w_OI[rows], start)
        w_part = w_OI[rows].astype(np.float32, copy=False)
        part = kind.pack(w_part, mask_OI[rows], **plan)
        if step == n_out:
            return part
        for name, array in part.items():
            if not start:
                size = (panels(n_out), *array.shape[1:])
                arrays[name] = np.empty(size, array.dtype)
            first = start // PANEL
            arrays[name][first : first + array.shape[0]] = array
    return arrays


def _check_finite(w_OI: np.ndarray, first_row: int) -> None:
    if not np.isfinite(w_OI).all():
        row, column = np.argwhere(~np.isfinite(w_OI))[0]
        raise InputError(
            f"the weight at row {first_row + row}, input {column} is not finite"
        )
