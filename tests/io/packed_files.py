"""Packed files as bytes, whole and damaged, for the tests."""

import io
import struct
import zlib

import numpy as np

from sparse_jax.io import packed_parse
from sparse_jax.io.packed_layout import PAGE
from sparse_jax.io.packed_writer import PackedWriter
from sparse_jax.types import InputError


def make(tensors: dict, files: dict[str, bytes] | None = None) -> bytes:
    """The file of some tensors: arrays, or packed leaves."""
    stream = io.BytesIO()
    writer = PackedWriter(stream)
    for name, content in (files or {}).items():
        writer.add_file(name, content)
    for name, tensor in tensors.items():
        writer.add(name, tensor)
    writer.finish()
    return stream.getvalue()


def index_of(content: bytes) -> tuple[int, int]:
    """Where the index starts, and its length, as the header says."""
    return struct.unpack_from("<QQ", content, 24)


def mend(content: bytes) -> bytes:
    """The same bytes with right sizes and checksums, as far as they can be found."""
    data = bytearray(content.ljust(PAGE, b"\0"))
    offset, _ = index_of(data)
    if not PAGE <= offset <= len(data):
        offset = len(data)
    struct.pack_into("<Q", data, 16, len(data))
    struct.pack_into("<QQ", data, 24, offset, len(data) - offset)
    _mend_header(data)
    try:
        array = np.frombuffer(bytes(data), np.uint8)
        records = packed_parse.parse(array, verify=False)
    except InputError:
        return bytes(data)
    view = memoryview(data)
    index = data[offset:]
    for record in records:
        for found in record.arrays:
            head = struct.pack("<QQI", found.offset, found.nbytes, found.crc32)
            crc32 = zlib.crc32(view[found.offset : found.end])
            new = struct.pack("<QQI", found.offset, found.nbytes, crc32)
            index = index.replace(head, new, 1)
    view.release()
    data[offset:] = index
    _mend_header(data)
    return bytes(data)


def _mend_header(data: bytearray) -> None:
    offset, _ = index_of(data)
    struct.pack_into("<I", data, 40, zlib.crc32(memoryview(data)[offset:]))
    struct.pack_into("<I", data, 12, 0)
    struct.pack_into("<I", data, 12, zlib.crc32(memoryview(data)[:PAGE]))


def mutate(rng: np.random.Generator, content: bytes, other: bytes) -> bytes:
    """One random damage: cut short, flipped bits, spliced, resized, or odd numbers."""
    data = bytearray(content)
    index, _ = index_of(content)
    # Most of a small file is data: the index and the header get their share.
    low, high = [(0, 64), (index, len(data)), (0, len(data))][rng.integers(3)]
    at = int(rng.integers(low, high))
    match rng.integers(5):
        case 0:
            del data[int(rng.integers(len(data))) :]
        case 1:
            for _ in range(rng.integers(1, 6)):
                data[int(rng.integers(low, high))] ^= 1 << int(rng.integers(8))
        case 2:
            start, size = int(rng.integers(len(other))), int(rng.integers(1, 200))
            data[at : at + size] = other[start : start + size]
        case 3:
            size = int(rng.integers(1, 100))
            if rng.random() < 0.5:
                del data[at : at + size]
            else:
                data[at:at] = rng.bytes(size)
        case 4:
            width = int(rng.choice([1, 2, 4, 8]))
            value = int(rng.choice([0, 1, 2, 15, 64, 127, 2**31, 2**63 - 1]))
            value = (value - int(rng.integers(2))) % 256**width
            data[at : at + width] = value.to_bytes(width, "little")
    return bytes(data)
