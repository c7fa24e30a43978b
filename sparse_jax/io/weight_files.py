"""The weights of a Hugging Face directory, in one file or in shards with an index."""

import functools
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np

from sparse_jax.io import names, safetensors_file
from sparse_jax.io.entries import INDEX, SINGLE, leaf_shapes
from sparse_jax.io.names import Slot
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
) -> None:
    """Writes the tensors of a model; arguments as of `export.write_model`."""
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
    text = json.dumps(index, indent=2) + "\n"
    (directory / INDEX).write_text(text)


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
