"""Hugging Face Llama directories read as parameters, a few megabytes at a time.

A second copy of the model is never held, and no whole one where it is sharded, see
`placed`. `export` writes them.
"""

import functools
from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np

from sparse_jax.io import names
from sparse_jax.io.adapter_file import ADAPTER
from sparse_jax.io.config_json import load_config
from sparse_jax.io.entries import layer_shapes, leaf_shapes, open_entries
from sparse_jax.io.placed import read_leaves, read_part
from sparse_jax.io.safetensors_file import Entry
from sparse_jax.models.config import LlamaConfig
from sparse_jax.tree import from_paths, leaf_paths
from sparse_jax.types import InputError, Params, Tree

_FLOAT32 = np.dtype(np.float32)


def load(
    directory: str | Path,
    config: LlamaConfig | None = None,
    *,
    shardings: Tree | None = None,
) -> Params:
    """Reads the weights of a Hugging Face Llama as float32 parameters.

    Args:
      directory: holds `config.json` and `model.safetensors`, or shards of it with
        `model.safetensors.index.json`; float32, float16 or bfloat16.
      config: the directory's architecture, when it is read already.
      shardings: a sharding per leaf, see `mesh.shardings`; each process then reads
        what its devices hold. None = the default device.

    Raises:
      InputError: a missing, truncated, unexpected or wrong-shaped tensor, no
        safetensors at all, or an adapter, which `resolve` reads.
    """
    if (Path(directory) / ADAPTER).is_file():
        raise InputError(
            f"{directory}: holds an adapter ({ADAPTER}), which would be lost; read "
            "both with sparse_jax.io.resolve"
        )
    config = load_config(directory) if config is None else config
    entries = open_entries(Path(directory), config)
    return read_params(entries, config, shardings=shardings)


def read_params(
    entries: Mapping[str, Entry],
    config: LlamaConfig,
    *,
    shardings: Tree | None = None,
) -> Params:
    """Reads all parameters; arguments as of `load`, entries of `open_entries`."""
    placed = {} if shardings is None else leaf_paths(shardings)
    read = functools.partial(_read, entries)
    return from_paths(read_leaves(leaf_shapes(config), _FLOAT32, read, placed))


def read_layer(entries: Mapping[str, Entry], config: LlamaConfig, index: int) -> Params:
    """Reads one block as float32: `params["layers"]` at one layer."""
    shapes = layer_shapes(config)
    layer = {
        slot.path: read_tensor(entries, slot, shapes[slot.path])
        for slot in names.slots(shapes, [index])
    }
    return from_paths({path: layer[path] for path in shapes})["layers"]


def read_tensor(
    entries: Mapping[str, Entry], slot: names.Slot, shape: tuple[int, ...]
) -> jax.Array:
    """Reads one tensor as float32, in the layout of its leaf, which has `shape`."""
    return read_part(slot, shape, _FLOAT32, functools.partial(_read, entries))


def _read(entries: Mapping[str, Entry], slot: names.Slot, start: int, stop: int):
    return entries[slot.name].panels(start, stop)
