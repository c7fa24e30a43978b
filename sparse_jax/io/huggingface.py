"""Hugging Face Llama directories read as parameters, a few megabytes at a time.

A second copy of the model is never held: the stacked leaves are filled from small
pieces of the files and then taken over by JAX as they are. `export` writes them.
"""

import math
from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np

from sparse_jax.io import layout, names
from sparse_jax.io.config_json import load_config
from sparse_jax.io.entries import layer_shapes, leaf_shapes, open_entries
from sparse_jax.io.safetensors_file import Entry
from sparse_jax.models.config import LlamaConfig
from sparse_jax.tree import from_paths, leaf_paths
from sparse_jax.types import Params, Tree


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
      shardings: a sharding per leaf, see `mesh.shardings`; None = the default device.

    Raises:
      InputError: a missing, truncated, unexpected or wrong-shaped tensor, or no
        safetensors at all.
    """
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
    shapes = leaf_shapes(config)
    placed = {} if shardings is None else leaf_paths(shardings)
    loaded = {}
    # Largest first: the last leaves, where most memory is taken, cost the least more.
    for path in sorted(shapes, key=lambda path: -math.prod(shapes[path])):
        buffer = layout.aligned_empty(shapes[path], np.dtype(np.float32))
        for slot in names.slots([path], range(config.n_layers)):
            _fill(names.slot_part(slot, buffer), slot, entries)
        loaded[path] = jax.device_put(buffer, placed.get(path))
    return from_paths({path: loaded[path] for path in shapes})


def read_layer(entries: Mapping[str, Entry], config: LlamaConfig, index: int) -> Params:
    """Reads one block as float32: `params["layers"]` at one layer."""
    shapes = layer_shapes(config)
    layer = {
        slot.path: read_part(entries, slot, shapes[slot.path])
        for slot in names.slots(shapes, [index])
    }
    return from_paths({path: layer[path] for path in shapes})["layers"]


def read_part(
    entries: Mapping[str, Entry], slot: names.Slot, shape: tuple[int, ...]
) -> jax.Array:
    """Reads one tensor as float32, in the layout of its leaf, which has `shape`."""
    buffer = layout.aligned_empty(shape, np.dtype(np.float32))
    _fill(buffer, slot, entries)
    return jax.device_put(buffer)


def _fill(part: np.ndarray, slot: names.Slot, entries: Mapping[str, Entry]) -> None:
    for start, rows in entries[slot.name].panels():
        stop = start + len(rows)
        if slot.transposed:
            layout.copy_transposed(part[:, start:stop], rows)
        else:
            part[start:stop] = rows
