"""What is written of a block in memory, tensor by tensor."""

from collections.abc import Iterable, Mapping
from typing import Any

import jax
import numpy as np

from sparse_jax.io import adapter_file, export, masks_file, names, quantized_plan
from sparse_jax.io.block_file import MASK, NONE, Content, Kind
from sparse_jax.io.entries import layer_shapes
from sparse_jax.io.names import Slot
from sparse_jax.io.quantized_writer import encode
from sparse_jax.io.weight_files import Panels
from sparse_jax.quant import Activations, Grid
from sparse_jax.tree import leaf_paths
from sparse_jax.types import Params


def content_of(
    index: int,
    kind: Kind,
    layer_params: Params,
    masks: Mapping[str, jax.Array],
    grids: Mapping[str, Grid],
    activations: Activations | None,
    adapter: Mapping[str, jax.Array],
) -> tuple[Content, Panels]:
    """What a block's file will hold, and its tensors as they are asked for.

    Arguments and errors are those of `BlockWriter.write`.
    """
    leaves, shapes = leaf_paths({"layers": layer_params}), layer_shapes(kind.config)
    export.check_shapes(leaves, masks, shapes)
    added = {path: leaf.shape for path, leaf in adapter.items()}
    if added:
        n_layers = kind.config.n_layers
        whole = {path: (n_layers, *shape) for path, shape in added.items()}
        adapter_file.check(whole, kind.config)
    slots = names.slots(shapes, [index])
    keyed = {(path, index): grid for path, grid in grids.items()}
    rounded = activations if grids else None
    plans = quantized_plan.plan(keyed, slots, shapes, rounded)
    rounding = NONE if rounded is None else rounded.kind
    content = Content(list(masks), added, plans, rounding)
    waiting: dict[str, np.ndarray] = {}

    def tensors_of(slot: Slot) -> dict[str, Any]:
        part, mask = leaves[slot.path], masks.get(slot.path)
        (weight,) = names.slots([slot.path], [index])
        if weight.name not in plans:
            return {slot.name: export.to_tensor(slot, part, mask, kind.dtype)}
        grid = grids[slot.path]
        return encode(plans[weight.name], weight, part, mask, grid.scales, grid.zeros)

    def panels(slot: Slot) -> Iterable[np.ndarray]:
        if slot.name.startswith(MASK):
            yield masks_file.pack(slot, masks[slot.path])
        elif slot.path in adapter:
            yield adapter_file.to_tensor(slot, adapter[slot.path], *kind[::-1])
        else:
            if slot.name not in waiting:
                waiting.update(tensors_of(slot))
            yield waiting.pop(slot.name)

    return content, panels
