"""The one table of leaf paths and Hugging Face tensor names, for both directions.

Hugging Face stores one tensor per layer and every matrix as [out, in]; here layers are
stacked on axis 0 and a kernel is [in, out].
"""

from collections.abc import Iterable
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np

Leaf = jax.Array | np.ndarray
AnyLeaf = TypeVar("AnyLeaf", bound=Leaf)


class HFName(NamedTuple):
    """How a leaf is called and laid out in a Hugging Face checkpoint.

    Attributes:
      template: tensor name; `{}` is the layer of a stacked leaf.
      transposed: stored as [out, in] where the leaf is [in, out].
    """

    template: str
    transposed: bool = False


class Slot(NamedTuple):
    """One Hugging Face tensor and its place in the params tree.

    Attributes:
      path: leaf path.
      layer: index on axis 0 of the leaf, None for a leaf that is not stacked.
      name: Hugging Face tensor name.
      transposed: as in `HFName`.
    """

    path: str
    layer: int | None
    name: str
    transposed: bool


TABLE: dict[str, HFName] = {
    "embed/embedding": HFName("model.embed_tokens.weight"),
    "layers/attention_norm/scale": HFName("model.layers.{}.input_layernorm.weight"),
    **{
        f"layers/attention/{name}/{leaf}": HFName(
            f"model.layers.{{}}.self_attn.{name}_proj.{tensor}", leaf == "kernel"
        )
        for name in ("q", "k", "v", "o")
        for leaf, tensor in (("kernel", "weight"), ("bias", "bias"))
    },
    "layers/mlp_norm/scale": HFName("model.layers.{}.post_attention_layernorm.weight"),
    **{
        f"layers/mlp/{name}/{leaf}": HFName(
            f"model.layers.{{}}.mlp.{name}_proj.{tensor}", leaf == "kernel"
        )
        for name in ("gate", "up", "down")
        for leaf, tensor in (("kernel", "weight"), ("bias", "bias"))
    },
    "final_norm/scale": HFName("model.norm.weight"),
    "lm_head/kernel": HFName("lm_head.weight", True),
}
"""Leaf path -> Hugging Face name, in the order in which a checkpoint is written."""

_FACTORS, _OUTLIERS = ("slorb_s", "slorb_x"), ("outlier_index", "outlier_value")

# What is added to kernels lies beside them, see `adapter_file`.
TABLE |= {
    path.removesuffix("kernel") + leaf: HFName(
        template.removesuffix("weight") + leaf, transposed and leaf in _FACTORS
    )
    for path, (template, transposed) in list(TABLE.items())
    if path.endswith("/kernel")
    for leaf in (*_FACTORS, *_OUTLIERS)
}

LINEAR_KERNELS = r"layers/(attention|mlp)/(q|k|v|o|gate|up|down)/kernel"
"""Regex of the seven prunable matrices of a block."""


def slots(paths: Iterable[str], layers: Iterable[int]) -> list[Slot]:
    """The Hugging Face tensors of the leaves at `paths`, in the table's order.

    Args:
      paths: leaf paths.
      layers: which layers of the stacked leaves.

    Example:
      >>> [slot.name for slot in slots(["layers/mlp/up/kernel"], range(2))]
      ['model.layers.0.mlp.up_proj.weight', 'model.layers.1.mlp.up_proj.weight']
    """
    chosen, numbers = set(paths), tuple(layers)
    unknown = chosen - set(TABLE)
    assert not unknown, f"leaves without a Hugging Face name: {sorted(unknown)}"
    found = []
    for path, (template, transposed) in TABLE.items():
        if path not in chosen:
            continue
        for layer in numbers if is_stacked(path) else (None,):
            found.append(Slot(path, layer, template.format(layer), transposed))
    return found


def is_stacked(path: str) -> bool:
    """Tells whether the layers of a leaf are stacked on its axis 0."""
    return path.startswith("layers/")


def slot_shape(slot: Slot, leaf_shape: tuple[int, ...]) -> tuple[int, ...]:
    """Shape of the Hugging Face tensor that holds a slot of a leaf.

    Example:
      >>> slot_shape(slots(["layers/mlp/up/kernel"], [0])[0], (1, 64, 172))
      (172, 64)
    """
    shape = leaf_shape if slot.layer is None else leaf_shape[1:]
    return shape[::-1] if slot.transposed else shape


def slot_part(slot: Slot, leaf: AnyLeaf) -> AnyLeaf:
    """The part of a leaf that a slot holds; of a NumPy leaf, a view."""
    # Any: a type checker does not know that an index gives the same kind of array.
    part: Any = leaf if slot.layer is None else leaf[slot.layer]
    return part
