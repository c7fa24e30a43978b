"""Matrices as bitmaps and the values that are not zero, as in older checkpoints.

The layout "sparse-bitmask" of compressed-tensors up to 0.14: read, and never written.
A matrix `NAME.weight` [out, in], of floats or of codes, is stored as

    NAME.shape        integers [2] or [2, 1]: out, in
    NAME.compressed   [n] or [n, 1], the values row after row
    NAME.bitmask      U8 [out, ceil(in / 8)], bit i of byte j for input 8 j + i
    NAME.row_offsets  I64 [out] or [out, 1], values before each row

Source: https://github.com/vllm-project/compressed-tensors
"""

import dataclasses

import numpy as np
from jaxtyping import Shaped

from sparse_jax.io.safetensors_file import DTYPES, FLOATS, Entry
from sparse_jax.types import InputError

_PARTS = ("shape", "compressed", "bitmask", "row_offsets")


@dataclasses.dataclass(frozen=True, kw_only=True)
class BitmaskEntry(Entry):
    """A matrix that is stored as a bitmap and values.

    Attributes:
      values: where the values lie.
      bitmask: where the bitmap lies.
      offsets: where the number of values before each row lies.
    """

    values: Entry
    bitmask: Entry
    offsets: Entry

    @property
    def nbytes(self) -> int:
        """Bytes of the values, the bitmap and the offsets in the file."""
        return self.values.nbytes + self.bitmask.nbytes + self.offsets.nbytes

    def rows(self, start: int, stop: int) -> Shaped[np.ndarray, "rows in"]:
        """The rows [start, stop).

        Raises:
          InputError: as `panels`, or the bitmap and the offsets contradict each other.
        """
        n_out, n_in = self.shape
        (n_values,) = self.values.shape[:1]
        bits = np.unpackbits(
            self.bitmask.rows(start, stop), axis=1, count=n_in, bitorder="little"
        )
        kept = bits.view(bool)
        counts = np.count_nonzero(kept, axis=1)
        last = min(stop + 1, n_out)
        edges = self.offsets.rows(start, last).reshape(-1).tolist()
        edges += [n_values] * (stop + 1 - last)
        inside = edges[0] >= 0 and edges[-1] <= n_values
        if not inside or np.diff(edges).tolist() != counts.tolist():
            raise InputError(
                f"{self.file}: {self.offsets.name!r} does not fit "
                f"{self.bitmask.name!r} and the {n_values} values in rows {start} to "
                f"{stop - 1}; the file is damaged, copy it again"
            )
        rows = np.zeros((stop - start, n_in), DTYPES[self.dtype])
        rows[kept] = self.values.rows(edges[0], edges[-1]).reshape(-1)
        return rows

    def take(self, ids: np.ndarray) -> Shaped[np.ndarray, "rows in"]:
        """The rows at increasing `ids`; raises as `rows`."""
        return np.concatenate([self.rows(i, i + 1) for i in ids.tolist()])

    def read(self) -> Shaped[np.ndarray, "out in"]:
        """The whole matrix; raises as `rows`."""
        return self.rows(0, self.shape[0])


def take_bitmask(
    entries: dict[str, Entry], name: str, shape: tuple[int, ...]
) -> BitmaskEntry | None:
    """Takes the tensors of one matrix out of those of a checkpoint.

    Args:
      entries: tensor name -> where it lies; those that are used are removed.
      name: "NAME.weight".
      shape: (out, in) of the matrix.

    Returns:
      The matrix; None where it is stored in another way.

    Raises:
      InputError: a tensor is missing, or of another shape or dtype.
    """
    module = name.removesuffix(".weight")
    if f"{module}.bitmask" not in entries or len(shape) != 2:
        return None
    found = [entries.get(f"{module}.{part}") for part in _PARTS]
    for part, entry in zip(_PARTS, found, strict=True):
        if entry is None:
            raise InputError(
                f"{entries[f'{module}.bitmask'].file}: tensor '{module}.{part}' is "
                "missing"
            )
    sizes, values, bitmask, offsets = (entry for entry in found if entry is not None)
    n_out, n_in = shape
    n_values = (*values.shape, 0)[0]
    # Some versions made columns of all vectors.
    _expect(values, {(n_values,), (n_values, 1)}, {*FLOATS, "I8"})
    _expect(bitmask, {(n_out, -(-n_in // 8))}, {"U8"})
    _expect(offsets, {(n_out,), (n_out, 1)}, {"I64", "I32"})
    _expect(sizes, {(2,), (2, 1)}, {"I64", "I32"})
    stated = sizes.read().reshape(-1).tolist()
    if stated != list(shape):
        raise InputError(
            f"{sizes.file}: tensor {sizes.name!r} must hold {list(shape)}, found "
            f"{stated}"
        )
    for used in (sizes, values, bitmask, offsets):
        del entries[used.name]
    return BitmaskEntry(
        file=values.file,
        name=name,
        dtype=values.dtype,
        shape=shape,
        offset=values.offset,
        values=values,
        bitmask=bitmask,
        offsets=offsets,
    )


def _expect(entry: Entry, shapes: set[tuple[int, ...]], dtypes: set[str]) -> None:
    if entry.shape not in shapes or entry.dtype not in dtypes:
        raise InputError(
            f"{entry.file}: tensor {entry.name!r} must have a shape among "
            f"{sorted(map(list, shapes))} and a dtype among {sorted(dtypes)}, found "
            f"{list(entry.shape)} and {entry.dtype}"
        )
