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
from collections.abc import Callable, Iterable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from sparse_jax.io import layout, names, safetensors_file
from sparse_jax.io.entries import Shapes, leaf_shapes
from sparse_jax.io.names import Slot
from sparse_jax.io.safetensors_file import Entry, Tensor
from sparse_jax.models.config import LlamaConfig
from sparse_jax.tree import from_paths, leaf_paths
from sparse_jax.types import InputError, Masks

FORMAT = {"format": "sparse_jax.masks", "version": "1"}


def save_masks(path: str | Path, masks: Masks) -> None:
    """Writes the masks of a model, one tensor at a time.

    Args:
      path: the file.
      masks: tree of params; bool [L, in, out], True = kept, None = dense.

    Raises:
      OSError: the disk is full or read-only.
    """
    present = {p: m for p, m in leaf_paths(masks).items() if m is not None}

    def packed(slot: Slot) -> Iterable[np.ndarray]:
        yield pack(slot, names.slot_part(slot, present[slot.path]))

    shapes = {leaf_path: mask.shape for leaf_path, mask in present.items()}
    write_masks(path, shapes, packed)


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
    for leaf_path in sorted(shapes):
        for slot in names.slots([leaf_path], range(shapes[leaf_path][0])):
            shape = names.slot_shape(slot, shapes[leaf_path])
            stored[slot.name] = list(shape)
            data = functools.partial(packed, slot)
            tensors.append(Tensor(slot.name, "U8", packed_shape(shape), data))
    metadata = FORMAT | {"shapes": json.dumps(stored)}
    safetensors_file.write(Path(path), tensors, metadata)


def load_masks(path: str | Path, config: LlamaConfig) -> Masks:
    """Reads the masks of a model.

    Args:
      path: the file.
      config: architecture of the model.

    Returns:
      The tree of params; bool, True = kept, None = dense.

    Raises:
      InputError: the file is damaged, or belongs to another model.
    """
    entries = open_masks(path, config)
    shapes = leaf_shapes(config)

    def bits(slot: Slot) -> np.ndarray | None:
        if slot.name not in entries:
            return None
        return read_bits(entries[slot.name], names.slot_shape(slot, shapes[slot.path]))

    return read_masks(bits, config)


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


def read_masks(bits: Callable[[Slot], np.ndarray | None], config: LlamaConfig) -> Masks:
    """Stacks masks.

    Args:
      bits: the mask of a tensor as it lies in the file, [out, in]; None = dense.
      config: architecture of the model.

    Returns:
      The tree of params; bool [L, in, out], True = kept, None = dense.
    """
    masks: dict[str, jax.Array | None] = {}
    for path, shape in leaf_shapes(config).items():
        buffer = None
        for slot in names.slots([path], range(config.n_layers)):
            found = bits(slot)
            if found is None:
                break  # a leaf has masks in all layers or in none
            if buffer is None:
                buffer = layout.aligned_empty(shape, np.dtype(bool))
            part = names.slot_part(slot, buffer)
            if slot.transposed:
                layout.copy_transposed(part, found)
            else:
                part[...] = found
        masks[path] = None if buffer is None else jnp.asarray(buffer)
    return from_paths(masks)


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
    count = math.prod(shape)
    bits = np.unpackbits(entry.read(), count=count, bitorder="little")
    return bits.view(bool).reshape(shape)


def read_checked(
    entry: Entry, panels: Iterable[tuple[int, np.ndarray]], shape: tuple[int, ...]
) -> np.ndarray:
    """`read_bits`, compared with the weights.

    Args:
      entry: the mask.
      panels: (first row, rows) of its weights, see `Entry.panels`.
      shape: of the weights, [out, in].

    Raises:
      InputError: a weight that is marked as pruned is not zero.
    """
    kept = read_bits(entry, shape)
    wrong = sum(
        np.count_nonzero(layout.nonzero(rows) & ~kept[start : start + len(rows)])
        for start, rows in panels
    )
    if wrong:
        raise InputError(
            f"{entry.file}: {wrong} weights of {entry.name!r} are not zero but marked "
            "as pruned; the file belongs to other weights, delete or replace it"
        )
    return kept


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
