"""`masks.safetensors`: which weights of a Hugging Face directory are pruned.

A safetensors file beside `model.safetensors`. For every pruned tensor, under the name
that it has there, one uint8 vector of ceil(out * in / 8) bytes: the bits of its
[out, in] mask in row-major order, bit i of byte j for entry 8 j + i, 1 = kept. The
metadata are

    format   "sparse_jax.masks"
    version  "1"
    shapes   JSON, {tensor name: [out, in]}

so that `numpy.unpackbits(tensor, count=out * in, bitorder="little").reshape(out, in)`
reads a mask. Tensors that are not listed are dense.
"""

import functools
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from sparse_jax.io import gather, layout, names, safetensors_file
from sparse_jax.io.entries import Shapes, leaf_shapes
from sparse_jax.io.names import Slot
from sparse_jax.io.placed import Read, read_leaves
from sparse_jax.io.safetensors_file import Entry, Tensor
from sparse_jax.models.config import LlamaConfig
from sparse_jax.tree import from_paths, leaf_paths
from sparse_jax.types import InputError, Masks, Tree

FORMAT = {"format": "sparse_jax.masks", "version": "1"}

_PANEL = 2**22  # weights whose bits are unpacked at one time


def save_masks(path: str | Path, masks: Masks) -> None:
    """Writes the masks of a model, one tensor at a time; called by all processes.

    Args:
      path: the file, which process 0 writes.
      masks: tree of params; bool [L, in, out], True = kept, None = dense.

    Raises:
      OSError: the disk is full or read-only.
    """
    present = {p: m for p, m in leaf_paths(masks).items() if m is not None}
    shapes = {leaf_path: mask.shape for leaf_path, mask in present.items()}
    parts = (gather.part(slot, present[slot.path]) for slot in mask_slots(shapes))

    def write(parts: Iterator[np.ndarray]) -> None:
        write_masks(path, shapes, lambda slot: [pack(slot, next(parts))])

    gather.write_gathered(parts, write)


def mask_slots(shapes: Shapes) -> list[Slot]:
    """The tensors of a masks file in their order; arguments as of `write_masks`."""
    return [
        slot
        for leaf_path in sorted(shapes)
        for slot in names.slots([leaf_path], range(shapes[leaf_path][0]))
    ]


def write_masks(
    path: str | Path,
    shapes: Shapes,
    packed: Callable[[Slot], Iterable[np.ndarray]],
) -> None:
    """Writes a masks file, asking for the bits of a tensor when its turn comes.

    Args:
      path: the file.
      shapes: leaf path -> [L, in, out], of the masks there are.
      packed: the bytes of one tensor's bits, see `pack`.

    Raises:
      OSError: the disk is full or read-only.
    """
    tensors, stored = [], {}
    for slot in mask_slots(shapes):
        shape = names.slot_shape(slot, shapes[slot.path])
        stored[slot.name] = list(shape)
        data = functools.partial(packed, slot)
        tensors.append(Tensor(slot.name, "U8", packed_shape(shape), data))
    metadata = FORMAT | {"shapes": json.dumps(stored)}
    safetensors_file.write(Path(path), tensors, metadata)


def load_masks(
    path: str | Path, config: LlamaConfig, *, shardings: Tree | None = None
) -> Masks:
    """Reads the masks of a model.

    Args:
      path: the file.
      config: architecture of the model.
      shardings: as for `load`; those of dense leaves are not used.

    Returns:
      The tree of params; bool, True = kept, None = dense.

    Raises:
      InputError: the file is damaged, or belongs to another model.
    """
    entries = open_masks(path, config)
    shapes = leaf_shapes(config)

    def read(slot: Slot, start: int, stop: int):
        shape = names.slot_shape(slot, shapes[slot.path])
        return mask_rows(entries[slot.name], shape, start, stop)

    return read_masks(masked_paths(entries, config), read, config, shardings)


def open_masks(path: str | Path, config: LlamaConfig) -> dict[str, Entry]:
    """The tensors of a masks file by name, checked as `load_masks` does."""
    path = Path(path)
    entries, metadata = safetensors_file.read_header(path)
    if {key: metadata.get(key) for key in FORMAT} != FORMAT:
        raise InputError(f"{path}: not a masks file: its metadata are {metadata}")
    unexpected = dict(entries)
    for leaf_path, leaf_shape in leaf_shapes(config).items():
        slots = names.slots([leaf_path], range(config.n_layers))
        if not any(slot.name in entries for slot in slots):
            continue
        for slot in slots:
            shape = names.slot_shape(slot, leaf_shape)
            _check(path, slot.name, unexpected.pop(slot.name, None), shape, metadata)
    if unexpected:
        raise InputError(
            f"{path}: mask {next(iter(unexpected))!r} belongs to no tensor of the model"
        )
    return entries


def masked_paths(entries: Mapping[str, Entry], config: LlamaConfig) -> list[str]:
    """Paths of the leaves that have masks: in all layers, as `open_masks` checks."""
    slots = names.slots(leaf_shapes(config), [0])
    return [slot.path for slot in slots if slot.name in entries]


def read_masks(
    paths: Iterable[str],
    read: Read,
    config: LlamaConfig,
    shardings: Tree | None = None,
) -> Masks:
    """Stacks masks.

    Args:
      paths: of the leaves that have one.
      read: the rows of a mask as it lies in the file, [out, in].
      config: architecture of the model.
      shardings: see `load_masks`.

    Returns:
      The tree of params; bool [L, in, out], True = kept, None = dense.
    """
    shapes = leaf_shapes(config)
    placed = {} if shardings is None else leaf_paths(shardings)
    chosen = {path: shapes[path] for path in paths}
    masks = read_leaves(chosen, np.dtype(bool), read, placed)
    return from_paths(dict.fromkeys(shapes) | masks)


def pack(slot: Slot, part: jax.Array | np.ndarray) -> np.ndarray:
    """The bytes of one mask [in, out]."""
    kept = np.asarray(part)
    bits = layout.transposed(kept) if slot.transposed else kept
    return np.packbits(bits.reshape(-1), bitorder="little")


def to_leaf(slot: Slot, bits: np.ndarray) -> jax.Array:
    """The mask of one layer, [in, out], from that of a tensor, [out, in]."""
    return jnp.asarray(layout.transposed(bits) if slot.transposed else bits)


def packed_shape(shape: tuple[int, ...]) -> tuple[int]:
    """Shape of the bytes of a mask."""
    return (-(-math.prod(shape) // 8),)


def read_bits(entry: Entry, shape: tuple[int, ...]) -> np.ndarray:
    """The bool mask of `shape` [out, in] whose bytes lie at `entry`."""
    return np.concatenate([rows for _, rows in mask_rows(entry, shape, 0, shape[0])])


def mask_rows(
    entry: Entry, shape: tuple[int, ...], start: int, stop: int
) -> Iterator[tuple[int, np.ndarray]]:
    """Yields (first row, rows [r, in]) of a mask, a few megabytes at a time.

    Args:
      entry: where its bytes lie.
      shape: of the mask, [out, in].
      start: first row; up to seven rows before it come, too.
      stop: one more than the last row.
    """
    width = math.prod(shape[1:])
    step = max(1, _PANEL // (8 * width)) * 8  # eight rows end with a whole byte
    for first in range(start // 8 * 8, stop, step):
        last = min(first + step, stop)
        data = entry.rows(first * width // 8, -(-last * width // 8))
        bits = np.unpackbits(data, count=(last - first) * width, bitorder="little")
        yield first, bits.view(bool).reshape(-1, *shape[1:])


def checked_rows(
    entry: Entry, weights: Entry, start: int, stop: int
) -> Iterator[tuple[int, np.ndarray]]:
    """`mask_rows`, compared with the rows of the weights; raises as `check_zeros`."""
    wrong = 0
    for first, kept in mask_rows(entry, weights.shape, start, stop):
        rows = weights.rows(first, first + len(kept))
        wrong += int(np.count_nonzero(layout.nonzero(rows) & ~kept))
        yield first, kept
    check_zeros(entry, wrong)


def read_checked(
    entry: Entry, panels: Iterable[tuple[int, np.ndarray]], shape: tuple[int, ...]
) -> np.ndarray:
    """`read_bits`, compared with the weights.

    Args:
      entry: the mask.
      panels: (first row, rows) of its weights, see `Entry.panels`.
      shape: of the weights, [out, in].

    Raises:
      InputError: see `check_zeros`.
    """
    kept = read_bits(entry, shape)
    wrong = sum(
        int(np.count_nonzero(layout.nonzero(rows) & ~kept[start : start + len(rows)]))
        for start, rows in panels
    )
    check_zeros(entry, wrong)
    return kept


def check_zeros(entry: Entry, wrong: int) -> None:
    """Raises InputError where weights that are marked as pruned are not zero."""
    if wrong:
        raise InputError(
            f"{entry.file}: {wrong} weights of {entry.name!r} are not zero but marked "
            "as pruned; the file belongs to other weights, delete or replace it"
        )


def _check(
    path: Path,
    name: str,
    entry: Entry | None,
    shape: tuple[int, ...],
    metadata: dict[str, str],
) -> None:
    """The mask is there, of the tensor's shape and of the right number of bytes."""
    if entry is None:
        raise InputError(f"{path}: the mask of {name!r} is missing")
    try:
        stated = json.loads(metadata["shapes"])[name]
    except (KeyError, TypeError, ValueError, RecursionError):
        stated = None
    size = packed_shape(shape)
    if stated != list(shape) or entry.shape != size or entry.dtype != "U8":
        raise InputError(
            f"{path}: the mask of {name!r} must be {size[0]} uint8 bytes of shape "
            f"{list(shape)}, found {list(entry.shape)} {entry.dtype} of shape {stated}"
        )
