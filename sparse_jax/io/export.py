"""Parameters written as Hugging Face directories that transformers 4 and 5 load.

A second copy of the model is never made: each tensor is laid out when its turn comes.
"""

import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import jax
import numpy as np

from sparse_jax.io import masks_file, names, safetensors_file
from sparse_jax.io.config_json import config_to_json
from sparse_jax.io.directory import replace_directory
from sparse_jax.io.huggingface import INDEX, MASKS, SINGLE
from sparse_jax.io.safetensors_file import DTYPES, Tensor
from sparse_jax.models.config import LlamaConfig
from sparse_jax.models.llama import abstract_params
from sparse_jax.tree import leaf_paths
from sparse_jax.types import InputError, Masks, Params

Leaf = jax.Array | np.ndarray
WeightDtype = Literal["float32", "bfloat16", "float16"]

_CODES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}


def save(
    directory: str | Path,
    params: Params,
    config: LlamaConfig,
    *,
    masks: Masks | None = None,
    tokenizer_files: dict[str, bytes] | None = None,
    dtype: WeightDtype = "float32",
    max_shard_bytes: int = 5_000_000_000,
    overwrite: bool = False,
) -> None:
    """Writes a directory that transformers 4 and 5 load, all of it or nothing.

    Pruned weights are stored as zeros of a dense tensor; `masks.safetensors` (see
    `masks_file`), which other tools ignore, tells them from zeros that are kept.

    Args:
      directory: the new directory.
      params: weights, pruned ones already at zero (`sparsity.masks.apply`).
      config: architecture.
      masks: True = kept; None writes no masks.
      tokenizer_files: name -> content, written beside the weights.
      dtype: dtype of the stored weights; float32 gives the same bits back.
      max_shard_bytes: weights beyond this are split into several files.
      overwrite: replace a model that `directory` holds already.

    Raises:
      InputError: the directory holds something, the disk is full or read-only, or a
        weight does not fit into `dtype`.
      ValueError: a pruned weight is not zero, or a leaf does not fit `config`.
    """
    if dtype not in get_args(WeightDtype):
        raise InputError(
            f"dtype must be one of {list(get_args(WeightDtype))}, found {dtype!r}"
        )
    _check_params(params, masks, config)
    texts = {
        "config.json": config_to_json(config, dtype),
        "generation_config.json": {
            "_from_model_config": True,
            "bos_token_id": config.bos_token_id,
            "eos_token_id": config.eos_token_id,
        },
    }
    with replace_directory(Path(directory), overwrite=overwrite) as partial:
        for name, content in (tokenizer_files or {}).items():
            if Path(name).name != name or name in texts or "safetensors" in name:
                raise InputError(f"tokenizer file {name!r} cannot have this name")
            (partial / name).write_bytes(content)
        for name, values in texts.items():
            _write_json(partial / name, values)
        _write_weights(partial, params, masks, config, dtype, max_shard_bytes)
        if masks is not None:
            masks_file.save_masks(partial / MASKS, masks)


def _check_params(params: Params, masks: Masks | None, config: LlamaConfig) -> None:
    expected = {p: a.shape for p, a in leaf_paths(abstract_params(config)).items()}
    found = {path: leaf.shape for path, leaf in leaf_paths(params).items()}
    if found != expected:
        wrong = sorted(set(found.items()) ^ set(expected.items()))
        raise ValueError(f"params do not fit the config: {wrong}")
    for path, mask in leaf_paths(masks or {}).items():
        if mask is not None and mask.shape != expected.get(path):
            raise ValueError(f"mask {path} {mask.shape} fits no leaf of params")


def _write_weights(
    directory: Path,
    params: Params,
    masks: Masks | None,
    config: LlamaConfig,
    dtype: str,
    max_shard_bytes: int,
) -> None:
    leaves, mask_leaves = leaf_paths(params), leaf_paths(masks or {})
    tensors = [
        Tensor(
            slot.name,
            _CODES[dtype],
            names.slot_shape(slot, leaves[slot.path].shape),
            functools.partial(
                _tensor_data, slot, leaves[slot.path], mask_leaves.get(slot.path), dtype
            ),
        )
        for slot in names.slots(leaves, config.n_layers)
    ]
    shards = _split(tensors, max_shard_bytes)
    if len(shards) == 1:
        safetensors_file.write(directory / SINGLE, tensors, {"format": "pt"})
        return
    weight_map = {}
    for i, shard in enumerate(shards):
        file = f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors"
        safetensors_file.write(directory / file, shard, {"format": "pt"})
        weight_map |= {tensor.name: file for tensor in shard}
    total = sum(tensor.nbytes for tensor in tensors)
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    _write_json(directory / INDEX, index)


def _split(tensors: Sequence[Tensor], limit: int) -> list[list[Tensor]]:
    shards: list[list[Tensor]] = [[]]
    size = 0
    for tensor in tensors:
        if shards[-1] and size + tensor.nbytes > limit:
            shards.append([])
            size = 0
        shards[-1].append(tensor)
        size += tensor.nbytes
    return shards


def _tensor_data(
    slot: names.Slot, leaf: Leaf, mask: Leaf | None, dtype: str
) -> np.ndarray:
    """One tensor in Hugging Face's layout and the stored dtype, on the host."""
    part = np.asarray(leaf if slot.layer is None else leaf[slot.layer])
    if mask is not None:
        kept = np.asarray(mask if slot.layer is None else mask[slot.layer])
        if np.any((part != 0) & ~kept):
            raise ValueError(f"{slot.path}: a pruned weight is not zero")
    with np.errstate(over="ignore"):  # reported below
        data = (part.T if slot.transposed else part).astype(
            DTYPES[_CODES[dtype]], order="C", copy=False
        )
    if dtype == "float16" and np.isinf(data).any() and not np.isinf(part).any():
        raise InputError(
            f"{slot.path}: a weight of magnitude {np.abs(part).max():.3g} does not fit "
            "into float16; save as bfloat16 or float32"
        )
    return data


def _write_json(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2) + "\n")
