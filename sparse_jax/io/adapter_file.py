"""`adapter.safetensors`: the low-rank factors beside the pruned weights of a directory.

A safetensors file beside `model.safetensors`, in which a pruned matrix W [out, in] is
stored with its zeros; the model computes with

    W + S X

For every such matrix `NAME.weight` the file holds `NAME.slorb_s`, S [out, r], and,
where the projection was trained, `NAME.slorb_x`, X [r, in], with r = in / group. All
are floats of the weights' dtype. The metadata are

    format      "sparse_jax.adapter"
    version     "1"
    kind        "slorb"
    group       inputs per group, in decimal digits
    projection  "stored", or "indicator": X[i, j] = 1 where j // group = i, else 0

docs/adapter_format.md describes the file for other readers.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float32

from sparse_jax import mesh as mesh_lib
from sparse_jax.io import names, safetensors_file
from sparse_jax.io.entries import Shapes, leaf_shapes
from sparse_jax.io.names import Slot
from sparse_jax.io.placed import read_leaves
from sparse_jax.io.safetensors_file import FLOATS, Entry, Tensor
from sparse_jax.models.config import LlamaConfig
from sparse_jax.sparsity import adapters
from sparse_jax.types import InputError

ADAPTER = "adapter.safetensors"
FORMAT = {"format": "sparse_jax.adapter", "version": "1", "kind": "slorb"}
KERNEL, S, X = "kernel", "slorb_s", "slorb_x"

_FLOAT32 = np.dtype(np.float32)


@dataclasses.dataclass(frozen=True, kw_only=True)
class StoredAdapter:
    """An adapter on disk, whose header has been checked.

    Attributes:
      entries: tensor name -> where it lies.
      shapes: leaf path -> shape, [L, r, out] of S and [L, in, r] of X.
      slots: the tensors and their leaves.
      group: inputs per group.
    """

    entries: dict[str, Entry]
    shapes: dict[str, tuple[int, ...]]
    slots: list[Slot]
    group: int

    @property
    def words(self) -> str:
        """Where the adapter comes from, in words."""
        trained = any(path.endswith(X) for path in self.shapes)
        projection = "trained" if trained else "fixed"
        return f"adapter: from {ADAPTER}, groups of {self.group}, {projection}"

    def read(self, mesh: Mesh | None = None) -> dict[str, jax.Array]:
        """The factors in float32, by leaf path.

        Args:
          mesh: as of `resolve`.

        Raises:
          InputError: the file has become shorter.
        """

        def rows(slot: Slot, start: int, stop: int):
            return self.entries[slot.name].panels(start, stop)

        shardings = {}
        if mesh is not None:
            leaves = {
                path: jax.ShapeDtypeStruct(shape, _FLOAT32)
                for path, shape in self.shapes.items()
            }
            shardings = mesh_lib.shardings(mesh, leaves)
        return read_leaves(self.shapes, _FLOAT32, rows, shardings)

    def merged(self, weights: Mapping[str, Entry]) -> dict[str, Entry]:
        """A model's tensors by name, whose rows come with the low-rank term added."""
        merged = dict(weights)
        for slot in self.slots:
            module, leaf = slot.name.rsplit(".", 1)
            if leaf == S:
                name = f"{module}.weight"
                s, x = self.entries[slot.name], self.entries.get(f"{module}.{X}")
                merged[name] = MergedEntry.of(weights[name], s, x)
        return merged


@dataclasses.dataclass(frozen=True, kw_only=True)
class MergedEntry(Entry):
    """A matrix whose rows are read as those of W + S X, in float32.

    Attributes:
      weights: where W lies.
      s: where S lies.
      x: where X lies; None = the indicator of groups.
    """

    weights: Entry
    s: Entry
    x: Entry | None

    @classmethod
    def of(cls, weights: Entry, s: Entry, x: Entry | None) -> "MergedEntry":
        """The merged matrix, under the name of W."""
        fields = {f.name: getattr(weights, f.name) for f in dataclasses.fields(Entry)}
        return cls(**fields | {"dtype": "F32"}, weights=weights, s=s, x=x)

    def rows(self, start: int, stop: int) -> Float32[np.ndarray, "rows in"]:
        """The rows [start, stop); raises as `panels`."""
        w_OI = self.weights.rows(start, stop).astype(np.float32)
        s_OR = self.s.rows(start, stop).astype(np.float32)
        if self.x is not None:
            return w_OI + s_OR @ self.x.read().astype(np.float32)
        return w_OI + np.repeat(s_OR, self.shape[1] // s_OR.shape[1], axis=1)

    def take(self, ids: np.ndarray) -> Float32[np.ndarray, "rows in"]:
        """The rows at increasing `ids`; raises as `panels`."""
        return np.concatenate([self.rows(i, i + 1) for i in ids.tolist()])

    def read(self) -> Float32[np.ndarray, "out in"]:
        """The whole matrix; raises as `panels`."""
        return self.rows(0, self.shape[0])


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
    group, factors = _settings(path, metadata)
    model = leaf_shapes(config)
    unexpected, shapes, slots = dict(entries), {}, []
    for kernel, (*lead, n_in, n_out) in _kernels(model).items():
        node, rank = kernel.removesuffix(KERNEL), n_in // group
        expected = {S: (*lead, rank, n_out), X: (*lead, n_in, rank)}
        chosen = {node + leaf: expected[leaf] for leaf in factors}
        found = names.slots(chosen, range(config.n_layers))
        if not any(slot.name in entries for slot in found):
            continue
        if n_in % group:
            raise InputError(
                f"{path}: its group of {group} does not divide the {n_in} inputs of "
                f"{kernel}; the file belongs to another model"
            )
        for slot in found:
            shape = names.slot_shape(slot, chosen[slot.path])
            _check(path, slot.name, unexpected.pop(slot.name, None), shape)
        shapes, slots = shapes | chosen, slots + found
    if unexpected or not slots:
        what = f"tensor {next(iter(unexpected))!r}" if unexpected else "no tensor"
        raise InputError(
            f"{path}: holds {what}, where every tensor must be NAME.{S} or, with a "
            f"stored projection, NAME.{X} of a matrix NAME.weight of the model"
        )
    return StoredAdapter(entries=entries, shapes=shapes, slots=slots, group=group)


def check(shapes: Shapes, config: LlamaConfig) -> dict[str, str]:
    """The metadata of the file that holds leaves of these shapes.

    Args:
      shapes: leaf path -> shape, at least one.
      config: architecture.

    Raises:
      InputError: a leaf does not fit its kernel.
      ValueError: it cannot be stored here.
    """
    model = leaf_shapes(config)
    adapters.check({**model, **shapes})
    leaves = {path.rsplit("/", 1)[1] for path in shapes}
    if not leaves <= {S, X}:
        raise ValueError(
            f"{sorted(leaves - {S, X})} are no low-rank factors; fold them"
        )
    nodes = {
        leaf: {p[: -len(leaf)] for p in shapes if p.endswith(leaf)} for leaf in leaves
    }
    groups = {model[n + KERNEL][-2] // shapes[n + S][-2] for n in nodes[S]}
    if len(groups) > 1 or nodes.get(X, nodes[S]) != nodes[S]:
        raise ValueError(f"one file holds factors of one kind, found groups {groups}")
    projection = "stored" if X in leaves else "indicator"
    return FORMAT | {"group": str(groups.pop()), "projection": projection}


def adapter_slots(shapes: Shapes, config: LlamaConfig) -> list[Slot]:
    """The tensors of the file in their order."""
    return names.slots(shapes, range(config.n_layers))


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
      dtype: of the panels, a key of `safetensors_file.FLOATS`.
      panels: the rows of one tensor, as they lie in the file.

    Raises:
      OSError: the disk is full or read-only.
    """
    tensors = [
        Tensor(
            slot.name,
            dtype,
            names.slot_shape(slot, shapes[slot.path]),
            functools.partial(panels, slot),
        )
        for slot in adapter_slots(shapes, config)
    ]
    safetensors_file.write(path, tensors, check(shapes, config))


def _kernels(model: Shapes) -> dict[str, tuple[int, ...]]:
    return {path: shape for path, shape in model.items() if path.endswith(f"/{KERNEL}")}


def _settings(path: Path, metadata: Mapping[str, str]) -> tuple[int, tuple[str, ...]]:
    """The group, and the names of the factors that each matrix has."""
    if {key: metadata.get(key) for key in FORMAT} != FORMAT:
        raise InputError(
            f"{path}: not an adapter that can be read: expected the metadata {FORMAT}, "
            f"found {metadata}"
        )
    group, projection = metadata.get("group", ""), metadata.get("projection")
    factors = {"indicator": (S,), "stored": (S, X)}.get(str(projection))
    digits = group.isascii() and group.isdigit() and len(group) < 10
    if factors is None or not digits or int(group) < 1:
        raise InputError(
            f"{path}: 'group' must be a positive number and 'projection' 'indicator' "
            f"or 'stored', found {group!r} and {projection!r}"
        )
    return int(group), factors


def _check(path: Path, name: str, entry: Entry | None, shape: tuple[int, ...]) -> None:
    if entry is None:
        raise InputError(f"{path}: tensor {name!r} of shape {list(shape)} is missing")
    if entry.shape != shape or entry.dtype not in FLOATS:
        raise InputError(
            f"{path}: tensor {name!r} must have shape {list(shape)} and dtype in "
            f"{list(FLOATS)}, found {list(entry.shape)} and {entry.dtype}"
        )
