"""The safetensors format, read and written piece by piece.

The public library maps a file for reading and wants every tensor of a file in memory
for writing; models here are larger than half of memory, so neither will do. Layout:

    8 bytes   N, length of the header, little-endian
    N bytes   JSON: {name: {"dtype", "shape", "data_offsets": [begin, end]}, ...,
              "__metadata__": {str: str}}
    the rest  the tensors, row-major and little-endian, without holes

A file is parsed as hostile input: every length is checked before it is used.
Format: https://github.com/huggingface/safetensors
"""

import dataclasses
import itertools
import json
import math
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from io import BufferedReader
from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from sparse_jax.types import InputError

FLOATS: dict[str, np.dtype] = {
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(jnp.bfloat16),
}
"""Dtype names of weights."""

DTYPES: dict[str, np.dtype] = FLOATS | {
    "U8": np.dtype(np.uint8),
    "I8": np.dtype(np.int8),
    "BOOL": np.dtype(bool),
    "U16": np.dtype(np.uint16),
    "I16": np.dtype(np.int16),
    "U32": np.dtype(np.uint32),
    "I32": np.dtype(np.int32),
    "F64": np.dtype(np.float64),
    "U64": np.dtype(np.uint64),
    "I64": np.dtype(np.int64),
}
"""Every dtype name that can be read."""

_MAX_HEADER = 100_000_000  # bytes; the limit of the public library
_PANEL = 1 << 22  # bytes read at one time


@dataclasses.dataclass(frozen=True, kw_only=True)
class Entry:
    """Where one tensor lies.

    Attributes:
      file: path of the file.
      name: tensor name.
      dtype: name of its dtype, a key of `DTYPES`.
      shape: its shape.
      offset: first byte of its data in the file.
    """

    file: Path
    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int

    def panels(
        self, start: int = 0, stop: int | None = None
    ) -> Iterator[tuple[int, np.ndarray]]:
        """Yields (first row, rows [r, ...]) in order, a few megabytes at a time.

        Args:
          start: first row.
          stop: one more than the last row; None = all.

        Raises:
          InputError: the file has become shorter than its header says, or is gone.
        """
        if stop is None:
            stop = self.shape[0] if self.shape else 1
        step = self.panel_rows
        for first in range(start, stop, step):
            yield first, self.rows(first, min(first + step, stop))

    @property
    def nbytes(self) -> int:
        """Bytes that the tensor takes in the file."""
        return math.prod(self.shape) * DTYPES[self.dtype].itemsize

    @property
    def panel_rows(self) -> int:
        """How many rows make a few megabytes."""
        return max(1, _PANEL // max(1, self._row_bytes))

    def rows(self, start: int, stop: int) -> np.ndarray:
        """The rows [start, stop) of the tensor; raises as `panels`."""
        with self._open() as file:
            return self._read(file, start, (stop - start, *self.shape[1:]))

    def take(self, ids: np.ndarray) -> np.ndarray:
        """The rows at increasing `ids`, neighbours in one go; raises as `panels`."""
        taken = np.empty((len(ids), *self.shape[1:]), DTYPES[self.dtype])
        runs = np.flatnonzero(np.diff(ids, prepend=-2, append=-2) != 1)
        with self._open() as file:
            for first, last in itertools.pairwise(runs.tolist()):
                shape = taken[first:last].shape
                taken[first:last] = self._read(file, int(ids[first]), shape)
        return taken

    def read(self) -> np.ndarray:
        """The whole tensor; raises as `panels`."""
        with self._open() as file:
            return self._read(file, 0, self.shape)

    @property
    def _row_bytes(self) -> int:
        return math.prod(self.shape[1:]) * DTYPES[self.dtype].itemsize

    def _open(self) -> BufferedReader:
        try:
            return self.file.open("rb")
        except OSError as error:
            raise InputError(
                f"{self.file}: cannot be read: {error.strerror}"
            ) from error

    def _read(
        self, file: BufferedReader, row: int, shape: tuple[int, ...]
    ) -> np.ndarray:
        data = np.empty(shape, DTYPES[self.dtype].newbyteorder("<"))
        file.seek(self.offset + row * self._row_bytes)
        if file.readinto(data.reshape(-1).view(np.uint8).data) != data.nbytes:
            raise InputError(
                f"{self.file}: tensor {self.name!r} is truncated; copy the file again"
            )
        return data


class Tensor(NamedTuple):
    """One tensor to write: when its turn comes, `panels()` gives its rows in order."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    panels: Callable[[], Iterable[np.ndarray]]

    @property
    def nbytes(self) -> int:
        """Bytes that the tensor takes in the file."""
        return math.prod(self.shape) * DTYPES[self.dtype].itemsize


def read_header(path: Path) -> tuple[dict[str, Entry], dict[str, str]]:
    """Reads and checks a header.

    Returns:
      The tensors by name, and the metadata.

    Raises:
      InputError: the file cannot be read, is truncated or damaged.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(8)
            length = struct.unpack("<Q", head)[0] if len(head) == 8 else 0
            if not 2 <= length <= min(size - 8, _MAX_HEADER):
                raise _damaged(path, f"a header of {length} bytes in {size} bytes")
            text = file.read(length)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    try:
        header = json.loads(text.decode(), object_pairs_hook=_unique)
        metadata = header.pop("__metadata__", {})
        entries = {
            name: _entry(path, name, fields, 8 + length)
            for name, fields in header.items()
        }
        metadata = {str(key): str(value) for key, value in metadata.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        if isinstance(error, InputError):
            raise
        raise _damaged(path, "a header that is not valid") from error
    _check_layout(path, entries, 8 + length, size)
    return entries, metadata


def write(path: Path, tensors: Sequence[Tensor], metadata: dict[str, str]) -> None:
    """Writes a file, asking for each panel of a tensor only when its turn comes.

    Raises:
      OSError: the disk is full or read-only.
    """
    header: dict[str, object] = {"__metadata__": metadata} if metadata else {}
    end = 0
    for tensor in tensors:
        begin, end = end, end + tensor.nbytes
        header[tensor.name] = {
            "dtype": tensor.dtype,
            "shape": list(tensor.shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the data start aligned
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for tensor in tensors:
            written = 0
            for panel in tensor.panels():
                assert panel.dtype == DTYPES[tensor.dtype], tensor.name
                assert panel.shape[1:] == tensor.shape[1:], tensor.name
                data = np.ascontiguousarray(panel).reshape(-1).view(np.uint8).data
                written += file.write(data)
            assert written == tensor.nbytes, tensor.name


def _entry(path: Path, name: str, fields: dict, data_start: int) -> Entry:
    dtype, shape = fields["dtype"], tuple(fields["shape"])
    begin, end = fields["data_offsets"]
    if dtype not in DTYPES:
        raise InputError(
            f"{path}: tensor {name!r} has dtype {dtype!r}, which is not supported; "
            f"known are {list(DTYPES)}"
        )
    numbers = (*shape, begin, end)
    whole = all(type(n) is int and n >= 0 for n in numbers)
    if not whole or end - begin != math.prod(shape) * DTYPES[dtype].itemsize:
        raise _damaged(path, f"tensor {name!r} of shape {list(shape)} at {begin}:{end}")
    offset = data_start + begin
    return Entry(file=path, name=name, dtype=dtype, shape=shape, offset=offset)


def _check_layout(path: Path, entries: dict[str, Entry], start: int, size: int) -> None:
    """Tensors must follow each other without holes and fill the file exactly."""
    end = start
    for entry in sorted(entries.values(), key=lambda entry: entry.offset):
        if entry.offset != end:
            raise _damaged(path, f"tensor {entry.name!r} at byte {entry.offset}")
        end += entry.nbytes
    if end != size:
        raise InputError(
            f"{path}: truncated or damaged: the header describes {end} bytes, found "
            f"{size}; copy the file again"
        )


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    if len(dict(pairs)) != len(pairs):
        raise ValueError("a name occurs twice")
    return dict(pairs)


def _damaged(path: Path, found: str) -> InputError:
    return InputError(
        f"{path}: truncated or damaged safetensors file: found {found}; copy it again"
    )
