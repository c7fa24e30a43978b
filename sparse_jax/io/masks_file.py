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
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from sparse_jax.io import names, safetensors_file
from sparse_jax.io.safetensors_file import Entry, Tensor
from sparse_jax.models.config import LlamaConfig
from sparse_jax.models.llama import abstract_params
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
    tensors, shapes = [], {}
    for leaf_path, mask in leaf_paths(masks).items():
        if mask is None:
            continue
        for slot in names.slots([leaf_path], mask.shape[0]):
            shape = names.slot_shape(slot, mask.shape)
            shapes[slot.name] = list(shape)
            data = functools.partial(_packed, slot, mask)
            size = (-(-math.prod(shape) // 8),)
            tensors.append(Tensor(slot.name, "U8", size, data))
    metadata = FORMAT | {"shapes": json.dumps(shapes)}
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
    path = Path(path)
    entries, metadata = safetensors_file.read_header(path)
    if {key: metadata.get(key) for key in FORMAT} != FORMAT:
        raise InputError(f"{path}: not a masks file: its metadata are {metadata}")
    masks: dict[str, jax.Array | None] = {}
    unexpected = dict(entries)
    for leaf_path, leaf in leaf_paths(abstract_params(config)).items():
        slots = names.slots([leaf_path], config.n_layers)
        masks[leaf_path] = None
        if not any(slot.name in entries for slot in slots):
            continue
        for slot in slots:
            shape = names.slot_shape(slot, leaf.shape)
            _check(path, slot.name, unexpected.pop(slot.name, None), shape, metadata)
        buffer = np.empty(leaf.shape, bool)
        for slot in slots:
            target = names.slot_view(slot, buffer)
            bits = np.unpackbits(
                entries[slot.name].read(), count=target.size, bitorder="little"
            )
            target[...] = bits.reshape(target.shape)
        masks[leaf_path] = jnp.asarray(buffer)
    if unexpected:
        raise InputError(
            f"{path}: mask {next(iter(unexpected))!r} belongs to no tensor of the model"
        )
    return from_paths(masks)


def _packed(slot: names.Slot, mask: jax.Array | np.ndarray) -> np.ndarray:
    kept = np.asarray(mask if slot.layer is None else mask[slot.layer])
    bits = kept.T if slot.transposed else kept
    return np.packbits(bits.reshape(-1), bitorder="little")


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
    size = -(-math.prod(shape) // 8)
    if stated != list(shape) or entry.shape != (size,) or entry.dtype != "U8":
        raise InputError(
            f"{path}: the mask of {name!r} must be {size} uint8 bytes of shape "
            f"{list(shape)}, found {list(entry.shape)} {entry.dtype} of shape {stated}"
        )
