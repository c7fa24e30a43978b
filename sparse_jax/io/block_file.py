"""The file of one finished block, `block-00003.safetensors`.

A safetensors file of the block's Hugging Face tensors as the final model has them, the
bits of its masks, as `masks_file` packs them, under "mask.NAME", what is added to its
weights, see `adapter_file`, under its own names, and the metadata

    format       "sparse_jax.block"
    version      "2"
    index        number of the block
    model        the `config.json` of the model
    activations  how the inputs of quantised matrices are rounded: a kind, or "none"
    grids        JSON: {leaf path: {"bits", "group", "symmetric", "scale_dtype"}} of
                 these matrices
    rows         JSON: what its maker wants to remember
"""

import dataclasses
import functools
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np

from sparse_jax.io import adapter_file, masks_file, names, safetensors_file
from sparse_jax.io.compressed_tensors import take_quantized
from sparse_jax.io.config_json import config_to_json
from sparse_jax.io.entries import layer_shapes, leaf_shapes
from sparse_jax.io.names import Slot
from sparse_jax.io.quantization_config import LINEAR, Quantization
from sparse_jax.io.quantized_plan import Stored, scheme_for
from sparse_jax.io.safetensors_file import Entry, Tensor
from sparse_jax.io.weight_files import CODES, Panels, slot_tensors
from sparse_jax.models.config import LlamaConfig
from sparse_jax.quant import Activations, GridConfig
from sparse_jax.quant.activations import ActivationKind
from sparse_jax.types import InputError

Row = dict[str, Any]

_FORMAT = {"format": "sparse_jax.block", "version": "2"}
MASK, NONE = "mask.", "none"


class Kind(NamedTuple):
    """What a model's blocks are of.

    Attributes:
      config: architecture.
      dtype: of the stored floats.
    """

    config: LlamaConfig
    dtype: str


class Content(NamedTuple):
    """What the file of a block holds beside the weights.

    Attributes:
      masked: leaf paths of the matrices that have masks.
      adapter: leaf path -> shape, in one layer, of what is added to the weights.
      plans: "NAME.weight" -> how it is written, of the matrices that are quantised.
      activations: how their inputs are rounded, a kind or "none".
    """

    masked: list[str]
    adapter: dict[str, tuple[int, ...]]
    plans: dict[str, Stored]
    activations: str

    def fits(self, other: "Content") -> bool:
        """Whether two blocks can be of one model; their plans may differ."""
        kinds = {self.activations, other.activations}
        alike = len(kinds) == 1 or not self.plans or not other.plans
        return (
            set(self.masked) == set(other.masked)
            and self.adapter == other.adapter
            and alike
        )


class Block(NamedTuple):
    """A block that is on the disk.

    Attributes:
      index: its number.
      content: what it holds.
      stored: tensor name -> where it lies.
      entries: the model's tensors among these, quantised ones as one.
      rows: what its maker remembers.
    """

    index: int
    content: Content
    stored: dict[str, Entry]
    entries: dict[str, Entry]
    rows: list[Row]

    def mask(self, path: str) -> jax.Array:
        """A mask [in, out] as it was given."""
        (slot,) = names.slots([path], [self.index])
        shape = self.entries[slot.name].shape
        bits = masks_file.read_bits(self.stored[MASK + slot.name], shape)
        return masks_file.to_leaf(slot, bits)

    def added(self, path: str) -> jax.Array:
        """A leaf of the adapter as it is stored, rounded."""
        (slot,) = names.slots([path], [self.index])
        values = self.stored[slot.name].read()
        if values.dtype != np.int32:
            values = values.astype(np.float32)
        return jnp.asarray(values.T if slot.transposed else values)


def write_block(
    path: Path,
    index: int,
    kind: Kind,
    content: Content,
    rows: list[Row],
    panels: Panels,
) -> None:
    """Writes a block.

    Args:
      path: the file.
      index: which block.
      kind: of the model.
      content: what it holds.
      rows: anything JSON can hold.
      panels: a tensor of the file, asked for by a slot of its name.
    """
    slots = names.slots(layer_shapes(kind.config), [index])
    grids = {
        slot.path: dataclasses.asdict(content.plans[slot.name].scheme.grid)
        | {"scale_dtype": content.plans[slot.name].scale_dtype}
        for slot in slots
        if slot.name in content.plans
    }
    metadata = _metadata(index, kind) | {
        "activations": content.activations,
        "grids": json.dumps(grids),
        "rows": json.dumps(rows),
    }
    safetensors_file.write(path, _tensors(index, kind, content, panels), metadata)


def open_block(path: Path, index: int, kind: Kind) -> Block:
    """Checks the file of a block.

    Raises:
      InputError: it is damaged, or belongs to another model.
    """
    try:
        stored, metadata = safetensors_file.read_header(path)
        rows = json.loads(metadata.pop("rows", "null"))
        grids = json.loads(metadata.pop("grids", "{}"))
        activations = metadata.pop("activations", NONE)
        plans = _plans(index, kind, grids, activations, stored)
    except (InputError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(
            f"{path}: truncated or damaged; delete it and run the same command again, "
            "which makes this block anew"
        ) from error
    slots = names.slots(layer_shapes(kind.config), [index])
    masked = [slot.path for slot in slots if MASK + slot.name in stored]
    adapter = {
        slot.path: names.slot_shape(slot._replace(layer=None), stored[slot.name].shape)
        for slot in names.slots(adapter_file.LEAVES, [index])
        if slot.name in stored
    }
    content = Content(masked, adapter, plans, activations)
    expected = {
        tensor.name: (tensor.dtype, tensor.shape)
        for tensor in _tensors(index, kind, content)
    }
    found = {name: (entry.dtype, entry.shape) for name, entry in stored.items()}
    if metadata != _metadata(index, kind) or found != expected or rows is None:
        raise InputError(
            f"{path}: belongs to another model, dtype or pruning; delete it or choose "
            "another place"
        )
    entries = dict(stored)
    for slot in slots:
        if slot.name in plans:
            known = Quantization(groups=((plans[slot.name].scheme, (LINEAR,)),))
            shape = names.slot_shape(slot, leaf_shapes(kind.config)[slot.path])
            quantized = take_quantized(entries, slot.name, shape, known)
            assert quantized is not None, slot.name
            entries[slot.name] = quantized
    return Block(index, content, stored, entries, rows)


def _plans(
    index: int, kind: Kind, grids: Any, activations: str, stored: Mapping[str, Entry]
) -> dict[str, Stored]:
    """How matrices are written, from the metadata."""
    kinds = {name: Activations(kind=name) for name in get_args(ActivationKind)}
    rounded = {NONE: None, **kinds}[activations]
    plans, paths = {}, [path for path in layer_shapes(kind.config) if path in grids]
    for slot in names.slots(paths, [index]):
        values = dict(grids[slot.path])
        scale_dtype = values.pop("scale_dtype")
        n_in = layer_shapes(kind.config)[slot.path][-2]
        scheme = scheme_for(GridConfig(**values), n_in, rounded)
        scale = None
        if scheme.activations == "static":
            scale = float(stored[adapter_file.beside(slot, "input_scale")].read()[0])
        plans[slot.name] = Stored(
            scheme=scheme, scale_dtype=scale_dtype, input_scale=scale
        )
    return plans


def _nothing(slot: Slot) -> Iterable[np.ndarray]:
    return ()


def _tensors(
    index: int, kind: Kind, content: Content, panels: Panels = _nothing
) -> list[Tensor]:
    """What the file of a block holds."""
    code, shapes = CODES[kind.dtype], leaf_shapes(kind.config)
    tensors = []
    for slot in names.slots(layer_shapes(kind.config), [index]):
        shape = names.slot_shape(slot, shapes[slot.path])
        plan = content.plans.get(slot.name)
        tensors += slot_tensors(slot, shape, code, panels, plan)
    for slot in names.slots(content.masked, [index]):
        size = masks_file.packed_shape(names.slot_shape(slot, shapes[slot.path]))
        named = slot._replace(name=MASK + slot.name)
        data = functools.partial(panels, named)
        tensors.append(Tensor(named.name, "U8", size, data))
    for slot in names.slots(content.adapter, [index]):
        shape = names.slot_shape(slot._replace(layer=None), content.adapter[slot.path])
        data = functools.partial(panels, slot)
        dtype = adapter_file.dtype_of(slot, code)
        tensors.append(Tensor(slot.name, dtype, shape, data))
    return tensors


def _metadata(index: int, kind: Kind) -> dict[str, str]:
    model = json.dumps(config_to_json(kind.config, kind.dtype))
    return _FORMAT | {"index": str(index), "model": model}
