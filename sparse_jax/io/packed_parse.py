"""The index of a packed file read, and everything checked that it says.

A file is parsed as hostile input: kernels trust every size and place that stands in it.
`kernels/cpu/packed_file.cc` gives the same verdicts in the same sentences.
"""

import math
import struct
import zlib

import numpy as np

from sparse_jax.io.packed_layout import (
    ALIGNMENT,
    ARRAY,
    DTYPES,
    FILE,
    HEADER,
    MAGIC,
    MAX_DIM,
    MAX_RANK,
    NAME,
    PAGE,
    PLACE,
    VERSION,
    ArrayRecord,
    Record,
    align,
)
from sparse_jax.types import InputError

_BYTE = struct.Struct("<B")
_MAX_SIDE = 2**31 - 1  # of a matrix


def parse(content: np.ndarray, *, verify: bool = True) -> list[Record]:
    """Reads the index of a file and checks everything that it says.

    Args:
      content: the file's bytes, uint8.
      verify: also read the arrays and compare their checksums.

    Raises:
      InputError: not a packed file, a newer one or a damaged one; the sentence does not
        name the file.
    """
    index_offset, n_records = _read_header(content)
    cursor = _Cursor(content[index_offset:].tobytes())
    records: list[Record] = []
    end, names = PAGE, set()
    for number in range(n_records):
        cursor.where = f"record {number}"
        record = _read_record(cursor, end, index_offset)
        if record.name in names:
            raise damaged(f"the name {record.name!r} occurs twice")
        names.add(record.name)
        end = align(record.arrays[-1].end)
        records.append(record)
    if not cursor.at_end:
        raise damaged("the index goes on after its last record")
    if end != index_offset:
        raise damaged("the index does not follow the last array")
    if verify:
        for record in records:
            _verify(content, record)
    return records


def damaged(found: str) -> InputError:
    """What is said of a file whose content does not fit together."""
    return InputError(
        f"truncated or damaged packed file ({found}); copy it again or export it anew"
    )


def _read_header(content: np.ndarray) -> tuple[int, int]:
    """Where the index starts, and of how many records it is."""
    page = content[:PAGE].tobytes()
    if page[: len(MAGIC)] != MAGIC:
        raise InputError(
            "not a packed file (it does not start with the bytes "
            f"{MAGIC.decode()}); launch/export.py makes one"
        )
    if len(page) < PAGE:
        raise damaged(f"it ends after {len(page)} bytes, within the header")
    _, version, page_crc32, size, offset, length, index_crc32, count = (
        HEADER.unpack_from(page)
    )
    if version != VERSION:
        raise InputError(
            f"packed file of version {version}, but this program reads version "
            f"{VERSION}; use a program of that version, or export the model again"
        )
    if zlib.crc32(page[:12] + bytes(4) + page[16:]) != page_crc32:
        raise damaged("the checksum of its header does not match")
    if size != len(content):
        raise damaged(f"it has {len(content)} bytes, its header says {size}")
    if offset < PAGE or offset % ALIGNMENT or offset > size or offset + length != size:
        raise damaged(f"an index of {length} bytes at byte {offset}")
    if zlib.crc32(content[offset:].data) != index_crc32:
        raise damaged("the checksum of its index does not match")
    return offset, count


class _Cursor:
    """Reads the index from its start; never beyond its end."""

    def __init__(self, content: bytes):
        self._content, self._place = content, 0
        self.where = ""

    @property
    def at_end(self) -> bool:
        return self._place == len(self._content)

    def take(self, count: int) -> bytes:
        if count > len(self._content) - self._place:
            raise damaged(f"the index ends within {self.where}")
        self._place += count
        return self._content[self._place - count : self._place]

    def numbers(self, layout: struct.Struct) -> tuple[int, ...]:
        return layout.unpack(self.take(layout.size))

    def text(self) -> str:
        (length,) = self.numbers(_BYTE)
        found = self.take(length)
        if not NAME.fullmatch(found):
            raise damaged(f"{self.where} has a name that is not allowed")
        return found.decode("ascii")

    def shape(self) -> tuple[int, ...]:
        (rank,) = self.numbers(_BYTE)
        if rank > MAX_RANK:
            raise damaged(f"{self.where} has {rank} dimensions")
        sizes = self.numbers(struct.Struct(f"<{rank}Q"))
        for size in sizes:
            if size > MAX_DIM:
                raise damaged(f"{self.where} has a dimension of {size}")
        return sizes


def _read_record(cursor: _Cursor, start: int, limit: int) -> Record:
    """The next record, whose arrays lie in [start, limit) without holes."""
    name = cursor.where = cursor.text()
    kind, shape, (n_arrays,) = cursor.text(), cursor.shape(), cursor.numbers(_BYTE)
    if not n_arrays:
        raise damaged(f"{name} has no arrays")
    arrays: list[ArrayRecord] = []
    for _ in range(n_arrays):
        array = _read_array(cursor, start, limit)
        if any(array.name == other.name for other in arrays):
            raise damaged(f"{name} has two arrays {array.name!r}")
        start = align(array.end)
        arrays.append(array)
    if kind in (FILE, ARRAY):
        plain = n_arrays == 1 and arrays[0].shape == shape
        if not plain or (
            kind == FILE and (len(shape), arrays[0].dtype) != (1, "uint8")
        ):
            raise damaged(f"{name} is not the {kind} that it says it is")
    elif len(shape) != 2 or not all(0 < size <= _MAX_SIDE for size in shape):
        raise damaged(f"{name} is no matrix")
    return Record(name=name, format=kind, shape=shape, arrays=tuple(arrays))


def _read_array(cursor: _Cursor, start: int, limit: int) -> ArrayRecord:
    """The next array, which must start at `start` and end by `limit`."""
    name, (code,) = cursor.text(), cursor.numbers(_BYTE)
    if code >= len(DTYPES):
        raise damaged(f"{cursor.where} has an array of the unknown dtype {code}")
    dtype, shape = list(DTYPES)[code], cursor.shape()
    offset, nbytes, crc32 = cursor.numbers(PLACE)
    # An empty dimension must not hide that the others are absurd.
    extent = DTYPES[dtype].itemsize * math.prod(max(1, size) for size in shape)
    found = ArrayRecord(name=name, dtype=dtype, shape=shape, offset=offset, crc32=crc32)
    if extent > limit or found.nbytes != nbytes:
        raise damaged(f"{cursor.where} has an array of {nbytes} bytes")
    if offset != start or nbytes > limit - start:
        raise damaged(f"{cursor.where} has an array at byte {offset}")
    return found


def _verify(content: np.ndarray, record: Record) -> None:
    for array in record.arrays:
        if zlib.crc32(content[array.offset : array.end].data) != array.crc32:
            raise damaged(
                f"the checksum of {record.name}, {array.name}, does not match"
            )
        if content[array.end : align(array.end)].any():
            raise damaged(f"{record.name}, {array.name}, does not end in zeros")
