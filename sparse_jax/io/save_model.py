"""Parameters saved as Hugging Face directories, which transformers 4 and 5 load.

A second copy of the model is never made: each tensor is laid out when its turn comes,
and gathered then where the model is sharded, to process 0, which writes it. Quantised
directories are for transformers 5 (docs/quantized_files.md).
"""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sparse_jax import distributed
from sparse_jax.files import disk_errors
from sparse_jax.io import adapter_file, gather, masks_file, names, quantized_plan
from sparse_jax.io.adapter_file import ADAPTER
from sparse_jax.io.directory import check_free
from sparse_jax.io.entries import Shapes, leaf_shapes
from sparse_jax.io.export import (
    MAX_SHARD_BYTES,
    WeightDtype,
    check_dtype,
    check_shapes,
    to_tensor,
    write_model,
)
from sparse_jax.io.mask_source import MASKS
from sparse_jax.io.names import Leaf, Slot
from sparse_jax.io.quantized_plan import Stored
from sparse_jax.io.quantized_writer import encode
from sparse_jax.io.weight_files import CODES, Panels
from sparse_jax.models.config import LlamaConfig
from sparse_jax.quant import Activations, Grids
from sparse_jax.sparsity.adapters import Adapter
from sparse_jax.tree import leaf_paths
from sparse_jax.types import InputError, Masks, Params

Parts = Iterator[tuple[Slot, Any, Any, Any]]
"""(tensor, its weights, mask, scales and zero points), as the files have them."""


def save(
    directory: str | Path,
    params: Params,
    config: LlamaConfig,
    *,
    masks: Masks | None = None,
    grids: Grids | None = None,
    activations: Activations | None = None,
    adapter: Adapter | None = None,
    tokenizer_files: dict[str, bytes] | None = None,
    dtype: WeightDtype = "float32",
    max_shard_bytes: int = MAX_SHARD_BYTES,
    overwrite: bool = False,
) -> None:
    """Writes a directory that transformers loads, all of it or nothing.

    Called by all processes, and the files are the same whatever the sharding. It
    returns, or raises, on all processes when the directory is there.

    Pruned weights are stored as zeros of a dense tensor, which `masks.safetensors` (see
    `masks_file`) tells from zeros that are kept, or as codes (`compressed_tensors`).

    Args:
      directory: the new directory.
      params: weights, pruned ones already at zero (`sparsity.masks.apply`).
      config: architecture.
      masks: True = kept; None = dense.
      grids: (leaf path, layer) -> the grid that the weights of a matrix are on.
      activations: how the inputs of quantised matrices are rounded; None = not at all.
      adapter: what is added to the weights, by leaf path, see `adapter_file`.
      tokenizer_files: name -> content, written beside the weights.
      dtype: dtype of the stored weights; float32 gives the same bits back.
      max_shard_bytes: weights beyond this are split into several files.
      overwrite: replace a model that `directory` holds already.

    Raises:
      InputError: the directory holds something, the disk is full or read-only, or a
        weight does not fit into `dtype` or is not on its grid.
      ValueError: a pruned weight is not zero, or a leaf does not fit `config`.
    """
    check_dtype(dtype)
    given = _check_given(params, masks, grids, activations, adapter, config)
    directory = Path(os.path.abspath(directory))
    distributed.on_lead(lambda: _check_free(directory, overwrite))

    def write(parts: Parts) -> None:
        panels, bits = _takers(parts, config, dtype, given.plans)
        write_model(
            directory,
            config,
            dtype,
            panels,
            _beside(given, config, dtype, panels, bits),
            plans=given.plans,
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
    grids: Grids
    plans: dict[str, Stored]


def _check_given(
    params: Params,
    masks: Masks | None,
    grids: Grids | None,
    activations: Activations | None,
    adapter: Adapter | None,
    config: LlamaConfig,
) -> _Given:
    """Raises as `save` unless everything fits the config."""
    weights, mask_leaves = leaf_paths(params), leaf_paths(masks or {})
    check_shapes(weights, mask_leaves, leaf_shapes(config))
    factors = dict(adapter or {})
    if factors:
        adapter_file.check(_shapes(factors), config)
    if activations is not None and not grids:
        raise InputError(
            "activations are for quantised matrices, but there are no grids"
        )
    slots, shapes = _slots(config), leaf_shapes(config)
    plans = quantized_plan.plan(grids or {}, slots, shapes, activations)
    present = {path: mask for path, mask in mask_leaves.items() if mask is not None}
    # Without a file, the zeros of codes could be taken for masks.
    given_masks = None if masks is None and not plans else present
    return _Given(weights, given_masks, factors, grids or {}, plans)


def _slots(config: LlamaConfig) -> list[Slot]:
    return names.slots(leaf_shapes(config), range(config.n_layers))


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
    for slot in _slots(config):
        mask = masks.get(slot.path)
        kept = None if mask is None else gather.part(slot, mask)
        part = gather.part(slot, given.weights[slot.path])
        grid = given.grids.get(quantized_plan.key_of(slot))
        if grid is not None:
            whole = slot._replace(layer=None)
            leaves = grid.scales, grid.zeros
            grid = [None if x is None else gather.part(whole, x) for x in leaves]
        yield slot, part, kept, grid
    for slot in masks_file.mask_slots(_shapes(masks)):
        yield slot, None, gather.part(slot, masks[slot.path]), None
    for slot in adapter_file.adapter_slots(_shapes(given.factors), config):
        yield slot, gather.part(slot, given.factors[slot.path]), None, None


def _takers(
    parts: Parts, config: LlamaConfig, dtype: str, plans: Mapping[str, Stored]
) -> tuple[Panels, Panels]:
    """Functions that take tensors and masks from `_gathered`, as they are written."""
    waiting: dict[str, np.ndarray] = {}

    def panels(slot: Slot) -> Iterable[np.ndarray]:
        if slot.name not in waiting:
            found, part, kept, grid = next(parts)
            assert (found.path, found.layer) == (slot.path, slot.layer), slot
            if found.path in adapter_file.LEAVES:
                tensor = adapter_file.to_tensor(found, part, dtype, config)
                tensors = {found.name: tensor}
            elif grid is None:
                tensors = {found.name: to_tensor(found, part, kept, dtype)}
            else:
                tensors = encode(plans[found.name], found, part, kept, *grid)
            waiting.update(tensors)
        yield waiting.pop(slot.name)

    def bits(slot: Slot) -> Iterable[np.ndarray]:
        found, _, kept, _ = next(parts)
        assert found == slot, slot
        yield masks_file.pack(slot, kept)

    return panels, bits


def _check_free(directory: Path, overwrite: bool) -> None:
    with disk_errors(directory):
        check_free(directory, overwrite=overwrite)
