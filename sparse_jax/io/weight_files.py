"""The weights of a Hugging Face directory, in one file or in shards with an index."""

import functools
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from sparse_jax.io import names, safetensors_file
from sparse_jax.io.entries import INDEX, SINGLE, leaf_shapes
from sparse_jax.io.names import Slot
from sparse_jax.io.quantized_plan import Stored
from sparse_jax.io.safetensors_file import Tensor
from sparse_jax.models.config import LlamaConfig

CODES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}
"""What a safetensors file calls the dtypes."""

Panels = Callable[[Slot], Iterable[np.ndarray]]
"""The rows of a tensor in order, as they lie in the file."""


def write_weights(
    directory: Path,
    config: LlamaConfig,
    dtype: str,
    panels: Panels,
    max_shard_bytes: int,
    plans: Mapping[str, Stored],
) -> None:
    """Writes the tensors of a model; arguments as of `export.write_model`."""
    shapes = leaf_shapes(config)
    tensors = [
        tensor
        for slot in names.slots(shapes, range(config.n_layers))
        for tensor in slot_tensors(
            slot,
            names.slot_shape(slot, shapes[slot.path]),
            CODES[dtype],
            panels,
            plans.get(slot.name),
        )
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
    text = json.dumps(index, indent=2) + "\n"
    (directory / INDEX).write_text(text)


def slot_tensors(
    slot: Slot,
    shape: tuple[int, ...],
    dtype: str,
    panels: Panels,
    stored: Stored | None,
) -> list[Tensor]:
    """The tensors of one slot, several where it is quantised.

    Args:
      slot: which tensor of the model.
      shape: as it lies in the file.
      dtype: of floats, a key of `safetensors_file.FLOATS`.
      panels: asked for each of them, by a slot of its name.
      stored: how it is quantised; None = floats.
    """
    found = {slot.name: (dtype, shape)}
    if stored is not None:
        found = stored.tensors(slot, shape)
    return [
        Tensor(name, *kind, functools.partial(panels, slot._replace(name=name)))
        for name, kind in found.items()
    ]


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
