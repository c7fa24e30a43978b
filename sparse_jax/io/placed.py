"""Leaves filled from the rows of tensors, on one device or shard by shard on many.

A process reads only the rows that its devices hold some of, and holds nothing else:
the buffer of a shard is taken over by JAX as it is on CPU, and copied to its device
elsewhere. Shards of one leaf are filled together, from one reading, while they fit into
a gibibyte; what a process needs beside its devices' memory is that much, or one shard.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Sharding, SingleDeviceSharding

from sparse_jax import distributed
from sparse_jax.io import layout, names
from sparse_jax.io.entries import Shapes
from sparse_jax.io.names import Slot

Read = Callable[[Slot, int, int], Iterable[tuple[int, np.ndarray]]]
"""(tensor, first row, one more than the last) -> (row, rows from it on), in order and
in the layout of the file."""

Bounds = tuple[tuple[int, int], ...]
"""(start, stop) of a shard in every dimension of its leaf."""

_TOGETHER = 2**30  # bytes


class Part(NamedTuple):
    """What a buffer holds of one tensor.

    Attributes:
      target: the place in the buffer, in the layout of the leaf.
      rows: (start, stop) of the tensor's rows.
      columns: of each row; nothing where rows are single numbers.
      transposed: the tensor lies as [out, in], the target is [in, out].
    """

    target: np.ndarray
    rows: tuple[int, int]
    columns: tuple[slice, ...]
    transposed: bool

    def take(self, start: int, rows: np.ndarray) -> None:
        """Copies what belongs here of a tensor's rows from `start` on."""
        first = max(start, self.rows[0])
        last = min(start + len(rows), self.rows[1])
        if first >= last:
            return
        piece = rows[(slice(first - start, last - start), *self.columns)]
        place = slice(first - self.rows[0], last - self.rows[0])
        if self.transposed:
            layout.copy_transposed(self.target[:, place], piece)
        else:
            self.target[place] = piece


def read_leaves(
    shapes: Shapes,
    dtype: np.dtype,
    read: Read,
    shardings: Mapping[str, Sharding],
) -> dict[str, jax.Array]:
    """Reads leaves onto their devices.

    Args:
      shapes: leaf path -> shape.
      dtype: of all leaves.
      read: the rows of a tensor.
      shardings: by path, and then all processes call this; {} = the default device.

    Raises:
      InputError: reading fails, on one process or on several.
    """

    def read_all() -> dict[str, jax.Array]:
        # Largest first: the last leaves, where most memory is taken, cost least more.
        largest_first = sorted(shapes, key=lambda path: -math.prod(shapes[path]))
        loaded = {
            path: read_leaf(path, shapes[path], dtype, read, shardings.get(path))
            for path in largest_first
        }
        return {path: loaded[path] for path in shapes}

    return distributed.everywhere(read_all) if shardings else read_all()


def read_leaf(
    path: str,
    shape: tuple[int, ...],
    dtype: np.dtype,
    read: Read,
    sharding: Sharding | None = None,
) -> jax.Array:
    """Reads one leaf onto its devices; arguments as of `read_leaves`."""
    if sharding is None:
        buffer = layout.aligned_empty(shape, dtype)
        _fill({tuple((0, size) for size in shape): buffer}, path, read)
        return jax.device_put(buffer)
    devices: dict[Bounds, list[jax.Device]] = {}
    for device, index in sharding.addressable_devices_indices_map(shape).items():
        assert index is not None
        bounds = tuple(
            part.indices(size)[:2] for part, size in zip(index, shape, strict=True)
        )
        devices.setdefault(bounds, []).append(device)
    placed = []
    for group in _groups(devices, dtype.itemsize):
        buffers = {
            bounds: layout.aligned_empty(_shape(bounds), dtype) for bounds in group
        }
        _fill(buffers, path, read)
        placed += [
            jax.device_put(buffers[bounds], SingleDeviceSharding(device))
            for bounds in group
            for device in devices[bounds]
        ]
        jax.block_until_ready(placed)  # before the next buffers are allocated
    return jax.make_array_from_single_device_arrays(shape, sharding, placed)


def place(leaf: jax.Array | np.ndarray, sharding: Sharding) -> jax.Array:
    """Places a leaf that is whole, and the same, on the host of every process."""
    whole = np.asarray(leaf)
    return jax.make_array_from_callback(whole.shape, sharding, lambda i: whole[i])


def _shape(bounds: Bounds) -> tuple[int, ...]:
    return tuple(stop - start for start, stop in bounds)


def _groups(shards: Iterable[Bounds], itemsize: int) -> Iterator[list[Bounds]]:
    """Shards that are filled together."""
    group: list[Bounds] = []
    size = 0
    for bounds in shards:
        nbytes = math.prod(_shape(bounds)) * itemsize
        if group and size + nbytes > _TOGETHER:
            yield group
            group, size = [], 0
        group.append(bounds)
        size += nbytes
    if group:
        yield group


def _fill(buffers: Mapping[Bounds, np.ndarray], path: str, read: Read) -> None:
    """Fills the buffers of some shards of a leaf, reading every row once."""
    stacked = names.is_stacked(path)
    edges = [bounds[0] for bounds in buffers]
    layers = range(min(a for a, _ in edges), max(b for _, b in edges))
    for slot in names.slots([path], layers if stacked else ()):
        parts = [
            _part(slot, bounds, buffer)
            for bounds, buffer in buffers.items()
            if slot.layer is None or bounds[0][0] <= slot.layer < bounds[0][1]
        ]
        copy_rows(slot, parts, read)


def _part(slot: Slot, bounds: Bounds, buffer: np.ndarray) -> Part:
    """The place of a tensor in the buffer of a shard that holds some of it."""
    if slot.layer is not None:
        buffer, bounds = buffer[slot.layer - bounds[0][0]], bounds[1:]
    rows, *columns = reversed(bounds) if slot.transposed else bounds
    return Part(buffer, rows, tuple(slice(*c) for c in columns), slot.transposed)


def copy_rows(slot: Slot, parts: list[Part], read: Read) -> None:
    """Reads the rows of a tensor that some parts hold."""
    if parts:
        first = min(part.rows[0] for part in parts)
        last = max(part.rows[1] for part in parts)
        for start, rows in read(slot, first, last):
            for part in parts:
                part.take(start, rows)


def read_part(slot: Slot, shape: tuple[int, ...], dtype: np.dtype, read: Read) -> Any:
    """Reads one tensor onto the default device, in the layout of its leaf."""
    buffer = layout.aligned_empty(shape, dtype)
    lengths = shape[::-1] if slot.transposed else shape
    columns = tuple(slice(0, n) for n in lengths[1:])
    part = Part(buffer, (0, lengths[0]), columns, slot.transposed)
    copy_rows(slot, [part], read)
    return jax.device_put(buffer)
