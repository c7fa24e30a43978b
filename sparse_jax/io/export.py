"""Hugging Face directories that transformers 4 and 5 load, tensor by tensor."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, get_args

import numpy as np

from sparse_jax.io import layout, names, quantized_plan
from sparse_jax.io.config_json import config_to_json
from sparse_jax.io.directory import replace_directory
from sparse_jax.io.entries import Shapes, leaf_shapes
from sparse_jax.io.names import Leaf, Slot
from sparse_jax.io.quantized_plan import Stored
from sparse_jax.io.safetensors_file import DTYPES
from sparse_jax.io.weight_files import CODES, Panels, write_weights
from sparse_jax.models.config import LlamaConfig
from sparse_jax.types import InputError

WeightDtype = Literal["float32", "bfloat16", "float16"]

MAX_SHARD_BYTES = 5_000_000_000


def write_model(
    directory: Path,
    config: LlamaConfig,
    dtype: str,
    panels: Panels,
    beside: Mapping[str, Callable[[Path], None]],
    *,
    plans: Mapping[str, Stored] = MappingProxyType({}),
    files: Sequence[tuple[str, bytes]] = (),
    max_shard_bytes: int = MAX_SHARD_BYTES,
    overwrite: bool = False,
) -> None:
    """Writes a directory from tensors that are asked for one after the other.

    Args:
      directory: the new directory.
      config: architecture.
      dtype: dtype of the panels of floats.
      panels: the rows of each tensor.
      beside: name -> what writes a file that other tools ignore, in this order.
      plans: tensor name -> how it is quantised, see `quantized_plan.plan`; the
        others are floats.
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
    if plans:
        slots = names.slots(leaf_shapes(config), range(config.n_layers))
        quantization = quantized_plan.to_json(plans, slots)
        texts["config.json"]["quantization_config"] = quantization
    taken = set(texts)
    with replace_directory(directory, overwrite=overwrite) as partial:
        for name, content in files:
            if Path(name).name != name or name in taken or "safetensors" in name:
                raise InputError(f"file {name!r} cannot have this name")
            taken.add(name)
            (partial / name).write_bytes(content)
        for name, values in texts.items():
            _write_json(partial / name, values)
        write_weights(partial, config, dtype, panels, max_shard_bytes, plans)
        for name, write_file in beside.items():
            write_file(partial / name)


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
