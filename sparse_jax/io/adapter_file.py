"""`adapter.safetensors`: what is added to the stored weights of a directory.

A safetensors file beside `model.safetensors`, in which a matrix W [out, in] is stored
pruned or quantised; the model computes with

    W + S X + D

For such a matrix `NAME.weight` the file may hold

    NAME.slorb_s        S [out, r], of any rank r
    NAME.slorb_x        X [r, in]; without it X[i, j] = 1 for j // (in / r) = i, else 0
    NAME.outlier_index  int32 [n], the places of the entries of D in its [out, in]
                        entries, row after row, increasing
    NAME.outlier_value  [n], these entries

in all layers or in none, of the same shapes. Floats are of the weights' dtype. The
metadata are

    format      "sparse_jax.adapter"
    version     "2"

docs/adapter_format.md describes the file for other readers.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from sparse_jax import mesh as mesh_lib
from sparse_jax.io import export, names, safetensors_file
from sparse_jax.io.entries import Shapes, leaf_shapes
from sparse_jax.io.merged_entry import MergedEntry
from sparse_jax.io.names import Slot
from sparse_jax.io.placed import read_leaves
from sparse_jax.io.safetensors_file import FLOATS, Entry, Tensor
from sparse_jax.models.config import LlamaConfig
from sparse_jax.sparsity import adapters
from sparse_jax.types import InputError

ADAPTER = "adapter.safetensors"
FORMAT = {"format": "sparse_jax.adapter", "version": "2"}
KERNEL = "kernel"
S, X = "slorb_s", "slorb_x"
INDEX, VALUE = "outlier_index", "outlier_value"

LEAVES = [
    path for path in names.TABLE if path.rpartition("/")[2] in (S, X, INDEX, VALUE)
]
"""Paths of the leaves that the file may hold."""

_FLOAT32, _INT32 = np.dtype(np.float32), np.dtype(np.int32)


@dataclasses.dataclass(frozen=True, kw_only=True)
class StoredAdapter:
    """An adapter on disk, whose header has been checked.

    Attributes:
      entries: tensor name -> where it lies.
      shapes: leaf path -> shape.
      slots: the tensors and their leaves.
      config: of the model.
    """

    entries: dict[str, Entry]
    shapes: dict[str, tuple[int, ...]]
    slots: list[Slot]
    config: LlamaConfig

    @property
    def words(self) -> str:
        """Where the adapter comes from, in words."""
        leaves = {path.rpartition("/")[2] for path in self.shapes}
        kinds = {S: "low-rank factors", INDEX: "outliers"}
        found = " and ".join(kinds[k] for k in kinds if k in leaves)
        return f"adapter: from {ADAPTER}, {found}"

    def read(self, mesh: Mesh | None = None) -> dict[str, jax.Array]:
        """The leaves by path, floats in float32 and places in int32.

        Args:
          mesh: as of `resolve`.

        Raises:
          InputError: the file has become shorter, or places are none of a matrix.
        """

        def rows(slot: Slot, start: int, stop: int):
            return self.entries[slot.name].panels(start, stop)

        found = {}
        for dtype in (_FLOAT32, _INT32):
            shapes = {
                path: shape
                for path, shape in self.shapes.items()
                if path.endswith(f"/{INDEX}") == (dtype == _INT32)
            }
            shardings = {}
            if mesh is not None:
                leaves = {
                    path: jax.ShapeDtypeStruct(shape, dtype)
                    for path, shape in shapes.items()
                }
                shardings = mesh_lib.shardings(mesh, leaves)
            found |= read_leaves(shapes, dtype, rows, shardings)
        self._check_places()
        return {path: found[path] for path in self.shapes}

    def merged(self, weights: Mapping[str, Entry]) -> dict[str, Entry]:
        """A model's tensors by name, whose rows come with everything added."""
        self._check_places()
        merged = dict(weights)
        for slot in self.slots:
            name = beside(slot, "weight")
            parts = [
                self.entries.get(beside(slot, leaf)) for leaf in (S, X, INDEX, VALUE)
            ]
            merged[name] = MergedEntry.of(weights[name], *parts)
        return merged

    def _check_places(self) -> None:
        kernels = leaf_shapes(self.config)
        for slot in self.slots:
            if slot.path.endswith(f"/{INDEX}"):
                kernel = kernels[slot.path.removesuffix(INDEX) + KERNEL]
                entry = self.entries[slot.name]
                where = f"{entry.file}: tensor {slot.name!r}"
                check_places(entry.read(), math.prod(kernel[-2:]), where)


def find_adapter(directory: Path, config: LlamaConfig) -> StoredAdapter | None:
    """The adapter of a Hugging Face directory; None where it has none.

    Raises:
      InputError: the file is damaged, or belongs to another model.
    """
    path = directory / ADAPTER
    return open_adapter(path, config) if path.is_file() else None


def open_adapter(path: Path, config: LlamaConfig) -> StoredAdapter:
    """Checks the header of an adapter's file; raises as `find_adapter`."""
    entries, metadata = safetensors_file.read_header(path)
    if {key: metadata.get(key) for key in FORMAT} != FORMAT:
        raise InputError(
            f"{path}: not an adapter that can be read: expected the metadata {FORMAT}, "
            f"found {metadata}"
        )
    unexpected, shapes, slots = dict(entries), {}, []
    for leaf in LEAVES:
        found = names.slots([leaf], range(config.n_layers))
        here = [entries[slot.name] for slot in found if slot.name in entries]
        if not here:
            continue
        for slot in found:
            _check(path, slot, unexpected.pop(slot.name, None), here[0].shape)
        whole = names.slot_shape(found[0]._replace(layer=None), here[0].shape)
        shapes[leaf], slots = (config.n_layers, *whole), slots + found
    if unexpected or not slots:
        what = f"tensor {next(iter(unexpected))!r}" if unexpected else "no tensor"
        raise InputError(
            f"{path}: holds {what}, where every tensor must be NAME.{S}, NAME.{X}, "
            f"NAME.{INDEX} or NAME.{VALUE} of a matrix NAME.weight of the model"
        )
    try:
        check(shapes, config)
    except InputError as error:
        raise InputError(f"{path}: {error}; it belongs to another model") from error
    return StoredAdapter(entries=entries, shapes=shapes, slots=slots, config=config)


def check(shapes: Shapes, config: LlamaConfig) -> None:
    """Checks that leaves of these shapes can be stored.

    Args:
      shapes: leaf path -> shape, at least one.
      config: architecture.

    Raises:
      InputError: a leaf does not fit its kernel.
      ValueError: it cannot be stored here.
    """
    model = leaf_shapes(config)
    adapters.check({**model, **shapes})
    others = sorted(set(shapes) - set(LEAVES))
    if others:
        raise ValueError(f"{others} are no low-rank factors or outliers; fold them")
    for path, shape in shapes.items():
        node, leaf = path.rsplit("/", 1)
        n_in = model[f"{node}/{KERNEL}"][-2]
        if leaf == S and shape[-2] > n_in:
            raise InputError(f"{path}: its rank {shape[-2]} is above the {n_in} inputs")


def check_places(places: np.ndarray, size: int, where: str) -> None:
    """Raises InputError unless the places of outliers increase within a matrix.

    Args:
      places: of one matrix.
      size: its entries, out * in.
      where: what the error names.
    """
    inside = places.size == 0 or (places[0] >= 0 and places[-1] < size)
    if not inside or np.any(np.diff(places.astype(np.int64)) <= 0):
        raise InputError(
            f"{where}: the places of outliers must increase from 0 to at most "
            f"{size - 1}, found {places[:3].tolist()} ... {places[-3:].tolist()}"
        )


def to_tensor(slot: Slot, part: Any, dtype: str, config: LlamaConfig) -> np.ndarray:
    """A leaf of one layer as it lies in the file.

    Args:
      slot: which tensor.
      part: its values, in the layout of the leaf.
      dtype: of stored floats.
      config: architecture.

    Raises:
      InputError: see `check_places`, or a value does not fit into `dtype`.
    """
    if not slot.path.endswith(f"/{INDEX}"):
        return export.to_tensor(slot, part, None, dtype)
    kernel = leaf_shapes(config)[slot.path.removesuffix(INDEX) + KERNEL]
    places = np.asarray(part).astype(np.int32)
    where = f"{slot.path} of layer {slot.layer}"
    check_places(places, math.prod(kernel[-2:]), where)
    return places


def adapter_slots(shapes: Shapes, config: LlamaConfig) -> list[Slot]:
    """The tensors of the file in their order."""
    return names.slots(shapes, range(config.n_layers))


def beside(slot: Slot, name: str) -> str:
    """The tensor of another name that belongs to the same module."""
    return f"{slot.name.rpartition('.')[0]}.{name}"


def dtype_of(slot: Slot, dtype: str) -> str:
    """The dtype of a tensor of the file, where floats are of `dtype`."""
    return "I32" if slot.path.endswith(f"/{INDEX}") else dtype


def write_adapter(
    path: Path,
    shapes: Shapes,
    config: LlamaConfig,
    dtype: str,
    panels: Callable[[Slot], Iterable[np.ndarray]],
) -> None:
    """Writes the file, asking for the rows of a tensor when its turn comes.

    Args:
      path: the file.
      shapes: see `check`.
      config: architecture.
      dtype: of the panels of floats, a key of `safetensors_file.FLOATS`.
      panels: the rows of one tensor, as they lie in the file.

    Raises:
      OSError: the disk is full or read-only.
    """
    check(shapes, config)
    tensors = [
        Tensor(
            slot.name,
            dtype_of(slot, dtype),
            names.slot_shape(slot, shapes[slot.path]),
            functools.partial(panels, slot),
        )
        for slot in adapter_slots(shapes, config)
    ]
    safetensors_file.write(path, tensors, FORMAT)


def _check(path: Path, slot: Slot, entry: Entry | None, shape: tuple[int, ...]) -> None:
    dtypes = ["I32"] if slot.path.endswith(f"/{INDEX}") else list(FLOATS)
    if entry is None:
        raise InputError(
            f"{path}: tensor {slot.name!r} of shape {list(shape)} is missing"
        )
    axes = 1 if slot.path.endswith((f"/{INDEX}", f"/{VALUE}")) else 2
    if entry.shape != shape or len(shape) != axes or entry.dtype not in dtypes:
        raise InputError(
            f"{path}: tensor {slot.name!r} must have {axes} axes, shape {list(shape)} "
            f"as in other layers and dtype in {dtypes}, found {list(entry.shape)} and "
            f"{entry.dtype}"
        )
