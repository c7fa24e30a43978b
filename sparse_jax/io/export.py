"""Parameters written as Hugging Face directories that transformers 4 and 5 load.

A second copy of the model is never made: each tensor is laid out when its turn comes,
and gathered then where the model is sharded.
"""

import functools
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from sparse_jax import distributed
from sparse_jax.files import disk_errors
from sparse_jax.io import gather, layout, masks_file, names, safetensors_file
from sparse_jax.io.config_json import config_to_json
from sparse_jax.io.directory import check_free, replace_directory
from sparse_jax.io.entries import INDEX, SINGLE, Shapes, leaf_shapes
from sparse_jax.io.mask_source import MASKS
from sparse_jax.io.names import Leaf, Slot
from sparse_jax.io.safetensors_file import DTYPES, Tensor
from sparse_jax.models.config import LlamaConfig
from sparse_jax.tree import leaf_paths
from sparse_jax.types import InputError, Masks, Params

WeightDtype = Literal["float32", "bfloat16", "float16"]

CODES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}
"""What a safetensors file calls the dtypes."""

MAX_SHARD_BYTES = 5_000_000_000

Panels = Callable[[Slot], Iterable[np.ndarray]]
"""The rows of a tensor in order, as they lie in the file."""

Parts = Iterator[tuple[Slot, Any, Any]]
"""(tensor, its weights, its mask) in the order of the files, on the host."""


def save(
    directory: str | Path,
    params: Params,
    config: LlamaConfig,
    *,
    masks: Masks | None = None,
    tokenizer_files: dict[str, bytes] | None = None,
    dtype: WeightDtype = "float32",
    max_shard_bytes: int = MAX_SHARD_BYTES,
    overwrite: bool = False,
) -> None:
    """Writes a directory that transformers 4 and 5 load, all of it or nothing.

    Called by all processes, and the files are the same whatever the sharding: tensors
    are gathered one after the other, and process 0 writes them. It returns, or raises,
    on all processes when the directory is there.

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
    check_dtype(dtype)
    leaves, mask_leaves = leaf_paths(params), leaf_paths(masks or {})
    check_shapes(leaves, mask_leaves, leaf_shapes(config))
    directory = Path(os.path.abspath(directory))
    distributed.on_lead(lambda: _check_free(directory, overwrite))
    present = {path: mask for path, mask in mask_leaves.items() if mask is not None}
    mask_shapes = {path: mask.shape for path, mask in present.items()}

    def write(parts: Parts) -> None:
        panels, bits = _takers(parts, dtype)
        options = {"shapes": mask_shapes, "packed": bits}
        write_masks = functools.partial(masks_file.write_masks, **options)
        write_model(
            directory,
            config,
            dtype,
            panels,
            None if masks is None else write_masks,
            files=list((tokenizer_files or {}).items()),
            max_shard_bytes=max_shard_bytes,
            overwrite=overwrite,
        )

    gather.write_gathered(_gathered(config, leaves, present, mask_shapes), write)


def _gathered(
    config: LlamaConfig,
    leaves: Mapping[str, Leaf],
    masks: Mapping[str, Leaf],
    mask_shapes: Shapes,
) -> Parts:
    """What the files hold, in their order: each weight with its mask, then masks."""
    for slot in names.slots(leaf_shapes(config), range(config.n_layers)):
        mask = masks.get(slot.path)
        kept = None if mask is None else gather.part(slot, mask)
        yield slot, gather.part(slot, leaves[slot.path]), kept
    for slot in masks_file.mask_slots(mask_shapes):
        yield slot, None, gather.part(slot, masks[slot.path])


def _takers(parts: Parts, dtype: str) -> tuple[Panels, Panels]:
    """Functions that take weights and masks from `_gathered`, as they are written."""

    def panels(slot: Slot) -> Iterable[np.ndarray]:
        found, part, kept = next(parts)
        assert found == slot, slot
        yield to_tensor(slot, part, kept, dtype)

    def bits(slot: Slot) -> Iterable[np.ndarray]:
        found, _, kept = next(parts)
        assert found == slot, slot
        yield masks_file.pack(slot, kept)

    return panels, bits


def write_model(
    directory: Path,
    config: LlamaConfig,
    dtype: str,
    panels: Panels,
    write_masks: Callable[[Path], None] | None,
    *,
    files: Sequence[tuple[str, bytes]] = (),
    max_shard_bytes: int = MAX_SHARD_BYTES,
    overwrite: bool = False,
) -> None:
    """Writes a directory from tensors that are asked for one after the other.

    Args:
      directory: the new directory.
      config: architecture.
      dtype: dtype of the panels.
      panels: the rows of each tensor.
      write_masks: writes the masks' file; None = there is none.
      files: (name, content) of what is carried along.
      max_shard_bytes: as in `save`.
      overwrite: as in `save`.

    Raises:
      InputError: as `save`; or a carried file may not have its name.
    """
    texts = {
        "config.json": config_to_json(config, dtype),
        "generation_config.json": {
            "_from_model_config": True,
            "bos_token_id": config.bos_token_id,
            "eos_token_id": config.eos_token_id,
        },
    }
    taken = set(texts)
    with replace_directory(directory, overwrite=overwrite) as partial:
        for name, content in files:
            if Path(name).name != name or name in taken or "safetensors" in name:
                raise InputError(f"file {name!r} cannot have this name")
            taken.add(name)
            (partial / name).write_bytes(content)
        for name, values in texts.items():
            _write_json(partial / name, values)
        _write_weights(partial, config, dtype, panels, max_shard_bytes)
        if write_masks is not None:
            write_masks(partial / MASKS)


def _check_free(directory: Path, overwrite: bool) -> None:
    with disk_errors(directory):
        check_free(directory, overwrite=overwrite)


def check_dtype(dtype: str) -> None:
    """Raises InputError for a dtype in which weights cannot be stored."""
    if dtype not in get_args(WeightDtype):
        raise InputError(
            f"dtype must be one of {list(get_args(WeightDtype))}, found {dtype!r}"
        )


def to_tensor(slot: Slot, part: Leaf, mask: Leaf | None, dtype: str) -> np.ndarray:
    """One tensor as it lies in the file, on the host.

    Args:
      slot: which tensor.
      part: its weights, in the layout of the leaf.
      mask: of the same shape, True = kept; None = dense.
      dtype: stored dtype.

    Raises:
      InputError: a weight does not fit into `dtype`.
      ValueError: a pruned weight is not zero.
    """
    weights = np.asarray(part)
    if mask is not None and np.any((weights != 0) & ~np.asarray(mask)):
        raise ValueError(f"{slot.path}: a pruned weight is not zero")
    stored = cast(weights, dtype, slot.path)
    return layout.transposed(stored) if slot.transposed else stored


def cast(weights: np.ndarray, dtype: str, path: str) -> np.ndarray:
    """Weights of the leaf at `path` in a stored dtype; raises as `to_tensor`."""
    with np.errstate(over="ignore"):  # reported below
        stored = weights.astype(DTYPES[CODES[dtype]], copy=False)
    if dtype == "float16":
        overflown = np.isinf(stored) & np.isfinite(weights)
        if overflown.any():
            raise InputError(
                f"{path}: a weight of magnitude {np.abs(weights[overflown]).max():.3g} "
                "does not fit into float16; save as bfloat16 or float32"
            )
    return stored


def check_shapes(
    leaves: Mapping[str, Leaf],
    masks: Mapping[str, Leaf | None],
    shapes: Shapes,
) -> None:
    """Raises ValueError unless leaves and masks, by path, have these shapes."""
    found = {path: leaf.shape for path, leaf in leaves.items()}
    if found != shapes:
        wrong = sorted(set(found.items()) ^ set(shapes.items()))
        raise ValueError(f"params do not fit the config: {wrong}")
    for path, mask in masks.items():
        if mask is not None and mask.shape != shapes.get(path):
            raise ValueError(f"mask {path} {mask.shape} fits no leaf of params")


def _write_weights(
    directory: Path,
    config: LlamaConfig,
    dtype: str,
    panels: Panels,
    max_shard_bytes: int,
) -> None:
    shapes = leaf_shapes(config)
    tensors = [
        Tensor(
            slot.name,
            CODES[dtype],
            names.slot_shape(slot, shapes[slot.path]),
            functools.partial(panels, slot),
        )
        for slot in names.slots(shapes, range(config.n_layers))
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


def _write_json(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2) + "\n")
