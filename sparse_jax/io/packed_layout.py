"""The layout of a packed file, which `docs/packed_format.md` describes."""

import dataclasses
import math
import re
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path

import jax.numpy as jnp
import numpy as np

MAGIC = b"SJPACKED"
VERSION = 2
PAGE = 4096  # bytes before the first array
ALIGNMENT = 64  # of every array: a cache line, and what JAX takes over without a copy

FILE, ARRAY = "file", "array"
"""Formats of records that are no matrix: a file's bytes, and an array as it is."""

_DTYPES = (
    ("uint8", np.uint8),
    ("int8", np.int8),
    ("uint16", np.uint16),
    ("int16", np.int16),
    ("uint32", np.uint32),
    ("int32", np.int32),
    ("float16", np.float16),
    ("bfloat16", jnp.bfloat16),
    ("float32", np.float32),
)
# A dtype's code in the file is its place in this list.
DTYPES: dict[str, np.dtype] = {
    name: np.dtype(kind).newbyteorder("<") for name, kind in _DTYPES
}
"""The dtypes of arrays, by name, in the order of their codes."""

HEADER = struct.Struct("<8sIIQQQII")
"""Magic, version, checksum; bytes, index offset and bytes; its checksum and records."""

PLACE = struct.Struct("<QQI")
"""Where an array lies: offset, bytes, checksum."""

MAX_RANK, MAX_DIM = 4, 2**40
NAME = re.compile(rb"[A-Za-z0-9_.-]+")
"""What names consist of."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ArrayRecord:
    """One array of the file.

    Attributes:
      name: its role in the record.
      dtype: a key of `DTYPES`.
      shape: up to four sizes, row-major.
      offset: its first byte in the file.
      crc32: of its bytes.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    crc32: int

    @property
    def nbytes(self) -> int:
        """Bytes, without the zeros up to the next array."""
        return math.prod(self.shape) * DTYPES[self.dtype].itemsize

    @property
    def end(self) -> int:
        """One more than its last byte."""
        return self.offset + self.nbytes


@dataclasses.dataclass(frozen=True, kw_only=True)
class Record:
    """One tensor, or one file carried along.

    Attributes:
      name: unique in the file; a tensor's is that of Hugging Face.
      format: a storage type, `ARRAY` or `FILE`.
      shape: of the tensor, [out, in] for a matrix.
      arrays: what it consists of.
    """

    name: str
    format: str
    shape: tuple[int, ...]
    arrays: tuple[ArrayRecord, ...]


def is_packed(path: Path) -> bool:
    """Whether a path is a file that starts like a packed one."""
    try:
        with path.open("rb") as file:
            return file.read(len(MAGIC)) == MAGIC
    except OSError:
        return False


def align(offset: int) -> int:
    """The next multiple of `ALIGNMENT`."""
    return -(-offset // ALIGNMENT) * ALIGNMENT


def encode_index(records: Sequence[Record]) -> bytes:
    """The index: one entry after the other."""
    parts = []
    for record in records:
        parts += [_text(record.name), _text(record.format), _shape(record.shape)]
        parts.append(struct.pack("<B", len(record.arrays)))
        for array in record.arrays:
            parts.append(_text(array.name))
            parts.append(struct.pack("<B", list(DTYPES).index(array.dtype)))
            parts.append(_shape(array.shape))
            parts.append(PLACE.pack(array.offset, array.nbytes, array.crc32))
    return b"".join(parts)


def encode_header(index_offset: int, index: bytes, n_records: int) -> bytes:
    """The first page of a file that ends with `index`."""
    fields = (index_offset + len(index), index_offset, len(index))
    counts = (zlib.crc32(index), n_records)
    blank = HEADER.pack(MAGIC, VERSION, 0, *fields, *counts).ljust(PAGE, b"\0")
    crc32 = zlib.crc32(blank)
    header = HEADER.pack(MAGIC, VERSION, crc32, *fields, *counts)
    return header.ljust(PAGE, b"\0")


def _text(text: str) -> bytes:
    encoded = text.encode()
    if not NAME.fullmatch(encoded) or len(encoded) > 255:
        raise ValueError(f"{text!r} cannot be a name in a packed file")
    return struct.pack("<B", len(encoded)) + encoded


def _shape(shape: Sequence[int]) -> bytes:
    if len(shape) > MAX_RANK or not all(0 <= size <= MAX_DIM for size in shape):
        raise ValueError(f"shape {tuple(shape)} cannot be stored in a packed file")
    return struct.pack(f"<B{len(shape)}Q", len(shape), *shape)
