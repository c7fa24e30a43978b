"""Hugging Face Llama directories read as parameters, a few megabytes at a time.

A second copy of the model is never held: the stacked leaves are filled from small
pieces of the files and then taken over by JAX as they are. `export` writes them.
"""

import math
from pathlib import Path
from typing import Any

import jax
import numpy as np

from sparse_jax.io import names, safetensors_file
from sparse_jax.io.config_json import load_config, read_json
from sparse_jax.io.safetensors_file import FLOATS, Entry
from sparse_jax.models.config import LlamaConfig
from sparse_jax.models.llama import abstract_params
from sparse_jax.tree import from_paths, leaf_paths
from sparse_jax.types import InputError, Params, Tree

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
MASKS = "masks.safetensors"

# JAX takes over a NumPy buffer on CPU, without a copy, when it is this aligned.
_ALIGNMENT = 64


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
    directory = Path(directory)
    config = load_config(directory) if config is None else config
    leaves = leaf_paths(abstract_params(config))
    entries = _entries(directory)
    _check_entries(entries, leaves, config, directory)
    placed = {} if shardings is None else leaf_paths(shardings)
    loaded = {}
    # Largest first: the last leaves, where most memory is taken, cost the least more.
    for path in sorted(leaves, key=lambda path: -math.prod(leaves[path].shape)):
        buffer = _aligned_empty(leaves[path].shape, np.dtype(np.float32))
        for slot in names.slots([path], config.n_layers):
            target = names.slot_view(slot, buffer)
            for start, rows in entries[slot.name].panels():
                target[start : start + len(rows)] = rows
        loaded[path] = jax.device_put(buffer, placed.get(path))
    return from_paths({path: loaded[path] for path in leaves})


def _aligned_empty(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """An uninitialised array that `jax.device_put` need not copy on CPU."""
    size = math.prod(shape) * dtype.itemsize
    raw = np.empty(size + _ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % _ALIGNMENT
    return raw[start : start + size].view(dtype).reshape(shape)


def _entries(directory: Path) -> dict[str, Entry]:
    """Every tensor of a directory, by name."""
    if (directory / SINGLE).is_file():
        return safetensors_file.read_header(directory / SINGLE)[0]
    index = directory / INDEX
    if not index.is_file():
        raise InputError(_no_weights(directory))
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise InputError(f"{index}: 'weight_map' is missing or empty")
    shards: dict[str, dict[str, Entry]] = {}
    for file in weight_map.values():
        if not isinstance(file, str) or Path(file).name != file:
            raise InputError(f"{index}: names {file!r}, which is outside {directory}")
        if file not in shards:
            shards[file] = safetensors_file.read_header(directory / file)[0]
    for name, file in weight_map.items():
        if name not in shards[file]:
            raise InputError(
                f"{directory / file}: tensor {name!r} is missing, {INDEX} expects it"
            )
    return {name: shards[file][name] for name, file in weight_map.items()}


def _no_weights(directory: Path) -> str:
    pickles = sorted(p.name for p in directory.glob("*.bin"))
    pickles += sorted(p.name for p in directory.glob("*.pt*"))
    if pickles:
        return (
            f"{directory}: holds {pickles[0]}, a pickle, which is never loaded; "
            "convert it to safetensors (in transformers: model.save_pretrained)"
        )
    return f"{directory}: no {SINGLE} and no {INDEX}"


def _check_entries(
    entries: dict[str, Entry],
    leaves: dict[str, Any],
    config: LlamaConfig,
    directory: Path,
) -> None:
    """Every expected tensor is there in the right shape, and nothing else."""
    unexpected = dict(entries)
    for path, leaf in leaves.items():
        for slot in names.slots([path], config.n_layers):
            entry = unexpected.pop(slot.name, None)
            shape = names.slot_shape(slot, leaf.shape)
            if entry is None:
                raise InputError(
                    f"{directory}: tensor {slot.name!r} of shape {list(shape)} is "
                    "missing"
                )
            if entry.shape != shape or entry.dtype not in FLOATS:
                raise InputError(
                    f"{entry.file}: tensor {slot.name!r} must have shape {list(shape)} "
                    f"and dtype in {list(FLOATS)}, found {list(entry.shape)} and "
                    f"{entry.dtype}"
                )
    if config.tie_embeddings and "lm_head.weight" in unexpected:
        _check_tied(unexpected.pop("lm_head.weight"), entries)
    for name, entry in unexpected.items():
        # Old checkpoints store this table, which follows from the configuration.
        if not name.endswith("rotary_emb.inv_freq"):
            raise InputError(
                f"{entry.file}: tensor {name!r} of shape {list(entry.shape)} is not "
                "part of the model that config.json describes"
            )


def _check_tied(head: Entry, entries: dict[str, Entry]) -> None:
    """A stored copy of a tied head must equal the embedding."""
    embedding = entries[names.TABLE["embed/embedding"].template]
    same = head.shape == embedding.shape and head.dtype == embedding.dtype
    if not same or any(
        not np.array_equal(a.view(np.uint8), b.view(np.uint8))
        for (_, a), (_, b) in zip(head.panels(), embedding.panels(), strict=True)
    ):
        raise InputError(
            f"{head.file}: tensor 'lm_head.weight' differs from {embedding.name!r}, "
            "but tie_word_embeddings is true; set it to false in config.json"
        )
