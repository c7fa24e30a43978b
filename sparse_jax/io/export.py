"""Parameters written as Hugging Face directories that transformers 4 and 5 load.

A second copy of the model is never made: each tensor is laid out when its turn comes,
and gathered then where the model is sharded.
"""

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np

from sparse_jax import distributed
from sparse_jax.files import disk_errors
from sparse_jax.io import adapter_file, gather, layout, masks_file, names
from sparse_jax.io.adapter_file import ADAPTER
from sparse_jax.io.config_json import config_to_json
from sparse_jax.io.directory import check_free, replace_directory
from sparse_jax.io.entries import Shapes, leaf_shapes
from sparse_jax.io.mask_source import MASKS
from sparse_jax.io.names import Leaf, Slot
from sparse_jax.io.safetensors_file import DTYPES
from sparse_jax.io.weight_files import CODES, Panels, write_weights
from sparse_jax.models.config import LlamaConfig
from sparse_jax.sparsity.adapters import Adapter
from sparse_jax.tree import leaf_paths
from sparse_jax.types import InputError, Masks, Params

WeightDtype = Literal["float32", "bfloat16", "float16"]

MAX_SHARD_BYTES = 5_000_000_000

Parts = Iterator[tuple[Slot, Any, Any]]
"""(tensor, its weights, its mask) in the order of the files, on the host."""


def save(
    directory: str | Path,
    params: Params,
    config: LlamaConfig,
    *,
    masks: Masks | None = None,
    adapter: Adapter | None = None,
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
    `adapter.safetensors` (see `adapter_file`) holds low-rank factors.

    Args:
      directory: the new directory.
      params: weights, pruned ones already at zero (`sparsity.masks.apply`).
      config: architecture.
      masks: True = kept; None writes no masks.
      adapter: low-rank factors by leaf path (`sparsity.adapters.split`); None, or an
        empty one, writes none.
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
    given = _check_given(params, masks, adapter, config)
    directory = Path(os.path.abspath(directory))
    distributed.on_lead(lambda: _check_free(directory, overwrite))

    def write(parts: Parts) -> None:
        panels, bits = _takers(parts, dtype)
        write_model(
            directory,
            config,
            dtype,
            panels,
            _beside(given, config, dtype, panels, bits),
            files=list((tokenizer_files or {}).items()),
            max_shard_bytes=max_shard_bytes,
            overwrite=overwrite,
        )

    gather.write_gathered(_gathered(config, given), write)


class _Given(NamedTuple):
    """What is saved, by leaf path; masks are None where there is no file of them."""

    weights: dict[str, Leaf]
    masks: dict[str, Leaf] | None
    factors: dict[str, Leaf]


def _check_given(
    params: Params, masks: Masks | None, adapter: Adapter | None, config: LlamaConfig
) -> _Given:
    """Raises as `save` unless everything fits the config."""
    weights, mask_leaves = leaf_paths(params), leaf_paths(masks or {})
    check_shapes(weights, mask_leaves, leaf_shapes(config))
    factors = dict(adapter or {})
    if factors:
        adapter_file.check(_shapes(factors), config)
    present = {path: mask for path, mask in mask_leaves.items() if mask is not None}
    return _Given(weights, None if masks is None else present, factors)


def _shapes(leaves: Mapping[str, Leaf]) -> Shapes:
    return {path: leaf.shape for path, leaf in leaves.items()}


def _beside(
    given: _Given, config: LlamaConfig, dtype: str, panels: Panels, bits: Panels
) -> dict[str, Callable[[Path], None]]:
    """What writes the files that other tools ignore, by name, in the files' order."""
    writers: dict[str, Callable[[Path], None]] = {}
    if given.masks is not None:
        shapes = _shapes(given.masks)
        writers[MASKS] = lambda path: masks_file.write_masks(path, shapes, bits)
    if given.factors:
        factors, code = _shapes(given.factors), CODES[dtype]
        writers[ADAPTER] = lambda path: adapter_file.write_adapter(
            path, factors, config, code, panels
        )
    return writers


def _gathered(config: LlamaConfig, given: _Given) -> Parts:
    """What the files hold, in their order: weights with masks, masks, factors."""
    masks = given.masks or {}
    for slot in names.slots(leaf_shapes(config), range(config.n_layers)):
        mask = masks.get(slot.path)
        kept = None if mask is None else gather.part(slot, mask)
        yield slot, gather.part(slot, given.weights[slot.path]), kept
    for slot in masks_file.mask_slots(_shapes(masks)):
        yield slot, None, gather.part(slot, masks[slot.path])
    for slot in adapter_file.adapter_slots(_shapes(given.factors), config):
        yield slot, gather.part(slot, given.factors[slot.path]), None


def _takers(parts: Parts, dtype: str) -> tuple[Panels, Panels]:
    """Functions that take floats and masks from `_gathered`, as they are written."""

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
    beside: Mapping[str, Callable[[Path], None]],
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
      beside: name -> what writes a file that other tools ignore, in this order.
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
        write_weights(partial, config, dtype, panels, max_shard_bytes)
        for name, write_file in beside.items():
            write_file(partial / name)


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


def _write_json(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2) + "\n")
