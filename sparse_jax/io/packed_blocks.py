"""A packed model one decoder block at a time, or unpacked into plain arrays."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from sparse_jax.io import layout, names
from sparse_jax.io.entries import layer_shapes, leaf_shapes
from sparse_jax.io.packed_file import HEAD, PackedModel
from sparse_jax.io.packed_table import look_up, take_rows
from sparse_jax.models.config import LlamaConfig
from sparse_jax.tree import from_paths, leaf_paths
from sparse_jax.types import Masks, Params


class PackedBlocks:
    """The blocks of a packed model, for what walks through models, as `BlockReader`.

    Kernels stay packed: a block computes what generating from the file computes, with
    activations rounded where the storage type rounds them. Only the head is unpacked,
    panel by panel, and multiplies activations in float32.

    Attributes:
      config: architecture.
    """

    def __init__(self, packed: PackedModel):
        """Copies nothing."""
        self.config: LlamaConfig = packed.config
        self._params = packed.params
        self._leaves = leaf_paths(packed.params)

    def embed(self, ids: Int[np.ndarray, "*lead"]) -> Float[Array, "*lead D"]:
        """Token embeddings."""
        return look_up(self._params["embed"]["embedding"], ids)

    def layer(self, index: int) -> Params:
        """One block's leaves, kernels [out, in]: `params["layers"]` at one layer."""
        leaves = {path: self._leaves[path][index] for path in layer_shapes(self.config)}
        return from_paths(leaves)["layers"]

    def leaf(self, path: str) -> Array:
        """A whole leaf that is not stacked, such as "final_norm/scale"."""
        return self._leaves[path]

    def rows(self, path: str, start: int, stop: int) -> Float[np.ndarray, "rows D"]:
        """Rows [start, stop) of the head, stored as [V, D], tied or not.

        Args:
          path: "embed/embedding" of a tied model, else "lm_head/kernel".
          start: first row.
          stop: one more than the last.
        """
        return take_rows(self._leaves[HEAD], start, stop)


def unpack(packed: PackedModel) -> tuple[Params, Masks | None]:
    """The params and masks of a packed model, as `resolve` gives them.

    Weights are float32 and exactly what the storage types stand for.

    Masks are the zeros of the matrices whose storage type is not a dense one; None
    where all are dense.
    """
    leaves = leaf_paths(packed.params)
    shapes = leaf_shapes(packed.config)
    params, masks = {}, dict.fromkeys(shapes)
    for path, shape in shapes.items():
        leaf = leaves[path]
        if isinstance(leaf, jax.Array):
            params[path] = leaf.astype(jnp.float32)
            continue
        buffer = layout.aligned_empty(shape, np.dtype(np.float32))
        for slot in names.slots([path], range(packed.config.n_layers)):
            part = leaf if slot.layer is None else leaf[slot.layer]
            target = names.slot_part(slot, buffer)
            if slot.transposed:
                layout.copy_transposed(target, part.unpack())
            else:
                target[...] = part.unpack()
        params[path] = jax.device_put(buffer)
        if names.is_stacked(path) and not all(p.format[:6] == "dense_" for p in leaf):
            masks[path] = jnp.asarray(buffer != 0)
    found = any(mask is not None for mask in masks.values())
    return from_paths(params), from_paths(masks) if found else None
