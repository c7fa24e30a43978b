"""The weights of a Hugging Face directory: every header checked, nothing read yet."""

import functools
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import numpy as np

from sparse_jax.io import names, quantization_config, safetensors_file
from sparse_jax.io.compressed_tensors import take_quantized
from sparse_jax.io.config_json import read_json
from sparse_jax.io.quantization_config import Quantization
from sparse_jax.io.safetensors_file import FLOATS, Entry
from sparse_jax.io.sparse_bitmask import take_bitmask
from sparse_jax.models.config import LlamaConfig
from sparse_jax.models.llama import abstract_params
from sparse_jax.tree import leaf_paths
from sparse_jax.types import InputError

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"

Shapes = Mapping[str, tuple[int, ...]]
"""Leaf path -> shape."""


def open_entries(directory: Path, config: LlamaConfig) -> dict[str, Entry]:
    """Where each tensor of a model lies.

    Args:
      directory: holds `model.safetensors`, or shards of it and their index.
      config: architecture that the tensors must have.

    Raises:
      InputError: a missing, truncated, unexpected or wrong-shaped tensor, or no
        safetensors at all.
    """
    file = directory / "config.json"
    values = read_json(file) if file.is_file() else {}
    quantization = quantization_config.from_json(values, str(file))
    return _check(_find(directory), quantization, config, directory)


@functools.cache  # a trace of the model: too slow to repeat for every block
def leaf_shapes(config: LlamaConfig) -> Shapes:
    """Shape of every leaf of a model's params, by path."""
    leaves = leaf_paths(abstract_params(config))
    return MappingProxyType({path: leaf.shape for path, leaf in leaves.items()})


def layer_shapes(config: LlamaConfig) -> Shapes:
    """Shape of one layer of every stacked leaf, by path."""
    shapes = leaf_shapes(config)
    return {path: shapes[path][1:] for path in shapes if names.is_stacked(path)}


def _find(directory: Path) -> dict[str, Entry]:
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


def _check(
    entries: dict[str, Entry],
    quantization: Quantization,
    config: LlamaConfig,
    directory: Path,
) -> dict[str, Entry]:
    """The model's tensors: each is there in the right shape, and nothing else."""
    expected, unexpected = {}, dict(entries)
    for path, leaf_shape in leaf_shapes(config).items():
        for slot in names.slots([path], range(config.n_layers)):
            shape = names.slot_shape(slot, leaf_shape)
            if quantization.bitmask:
                bitmask = take_bitmask(unexpected, slot.name, shape)
                if bitmask is not None:
                    unexpected[slot.name] = bitmask
            if quantization.groups and slot.transposed:
                quantized = take_quantized(unexpected, slot.name, shape, quantization)
                if quantized is not None:
                    expected[slot.name] = quantized
                    continue
            entry = unexpected.pop(slot.name, None)
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
            expected[slot.name] = entry
    if config.tie_embeddings and "lm_head.weight" in unexpected:
        _check_tied(unexpected.pop("lm_head.weight"), entries)
    for name, entry in unexpected.items():
        # Old checkpoints store this table, which follows from the configuration.
        if not name.endswith("rotary_emb.inv_freq"):
            raise InputError(
                f"{entry.file}: tensor {name!r} of shape {list(entry.shape)} is not "
                "part of the model that config.json describes"
            )
    return expected


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
