"""The grids and static scales of a quantised checkpoint, of a model or of a layer."""

import logging
from collections.abc import Iterator, Mapping, Sequence

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from sparse_jax.io import names
from sparse_jax.io.compressed_tensors import QuantizedEntry
from sparse_jax.io.entries import leaf_shapes
from sparse_jax.io.names import Slot
from sparse_jax.io.placed import place
from sparse_jax.io.quantized_plan import key_of
from sparse_jax.io.safetensors_file import Entry
from sparse_jax.models.config import LlamaConfig
from sparse_jax.quant import Activations, Grid

_log = logging.getLogger(__name__)


def found_grids(
    entries: Mapping[str, Entry],
    config: LlamaConfig,
    mesh: Mesh | None = None,
    layers: Sequence[int] | None = None,
) -> dict[tuple[str, int], Grid]:
    """The grid of each quantised matrix.

    Args:
      entries: the model's tensors, see `open_entries`.
      config: architecture.
      mesh: where they are replicated; None = this process's default device.
      layers: those of these blocks alone; None = of the whole model.

    Raises:
      InputError: a file has become shorter.
    """
    found = {}
    for slot, entry in _quantized(entries, config, layers):
        grid = entry.grid()
        if mesh is not None:
            whole = NamedSharding(mesh, PartitionSpec())
            grid = jax.tree.map(lambda leaf, to=whole: place(leaf, to), grid)
        found[key_of(slot)] = grid
    return found


def found_activations(
    entries: Mapping[str, Entry],
    config: LlamaConfig,
    layers: Sequence[int] | None = None,
) -> Activations | None:
    """How the inputs of quantised matrices are rounded; None = not at all.

    Where some are rounded in another way than others, or in an unknown one, that is
    logged, and it is None, too.
    """
    quantized = list(_quantized(entries, config, layers))
    kinds = {entry.scheme.activations for _, entry in quantized}
    kind = kinds.pop() if len(kinds) == 1 else "other"
    if not quantized or kind is None:
        return None
    if kind == "other":
        _log.warning(
            "%s: input_activations are not dynamic per token or static per tensor, of "
            "8 bits, for all quantised matrices alike; inputs stay floats",
            quantized[0][1].file.parent,
        )
        return None
    scales = {
        key_of(slot): entry.read_input_scale()
        for slot, entry in quantized
        if entry.input_scale is not None
    }
    return Activations(kind=kind, scales=scales)


def _quantized(
    entries: Mapping[str, Entry],
    config: LlamaConfig,
    layers: Sequence[int] | None = None,
) -> Iterator[tuple[Slot, QuantizedEntry]]:
    paths = list(leaf_shapes(config))
    if layers is not None:
        paths = [path for path in paths if names.is_stacked(path)]
    numbers = range(config.n_layers) if layers is None else layers
    for slot in names.slots(paths, numbers):
        entry = entries[slot.name]
        if isinstance(entry, QuantizedEntry):
            yield slot, entry
