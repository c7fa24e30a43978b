"""Where the masks of a Hugging Face directory come from: its file, else its zeros."""

import functools
import logging
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import jax
import numpy as np

from sparse_jax import distributed
from sparse_jax.io import layout, masks_file, names
from sparse_jax.io.compressed_tensors import QuantizedEntry
from sparse_jax.io.entries import layer_shapes
from sparse_jax.io.names import Slot
from sparse_jax.io.placed import read_part
from sparse_jax.io.safetensors_file import Entry
from sparse_jax.models.config import LlamaConfig
from sparse_jax.types import Masks, Tree

MASKS = "masks.safetensors"

_log = logging.getLogger(__name__)

_CHANCE_ZEROS = {0: 1e-3, 8: 0.03, 4: 0.25, 3: 0.45, 2: 1.0}
"""Bits of a code, 0 = floats -> the part of dense weights that may well be zero.

Among floats there are a few, of float16 about one in a million. Rounding normal weights
to a grid that reaches to some 2.5 of their deviations makes 1, 14, 32 and 79 in 100.
"""

_LINEARS = [path for path in names.TABLE if re.fullmatch(names.LINEAR_KERNELS, path)]


class MaskSource:
    """The masks of a model on disk, read one at a time.

    They are its `masks.safetensors`, checked against the weights whenever a mask is
    read; else the exact zeros of the seven linear matrices per block, if there are more
    than one in a thousand, or than rounding makes of quantised ones, which is logged.
    Without the file, the first question counts
    the zeros, in one pass over the linears.
    """

    def __init__(
        self,
        directory: Path,
        config: LlamaConfig,
        entries: Mapping[str, Entry],
        *,
        shared: bool = False,
    ):
        """Checks the file's header.

        Args:
          directory: may hold a `masks.safetensors`.
          config: architecture.
          entries: its weights, see `open_entries`.
          shared: all processes ask the same questions, and process 0 counts zeros.

        Raises:
          InputError: the file is damaged, or belongs to another model.
        """
        self._directory, self._config, self._weights = directory, config, entries
        self._file, self._shared = directory / MASKS, shared
        self._masks: dict[str, Entry] | None = None
        if self._file.is_file():
            self._masks = masks_file.open_masks(self._file, config)

    @property
    def found(self) -> bool:
        """Whether the model has masks; a file without any says that it is dense."""
        return self._from_zeros[0] if self._masks is None else bool(self._masks)

    @property
    def words(self) -> str:
        """Where the masks come from, in words."""
        if self._masks is None:
            return self._from_zeros[1]
        return f"masks: from {MASKS}" if self._masks else f"masks: none, says {MASKS}"

    def read(self, shardings: Tree | None = None) -> Masks:
        """All masks: the tree of params, True = kept, None = dense.

        Args:
          shardings: as for `load`.

        Raises:
          InputError: a weight that is marked as pruned is not zero.
        """
        config = self._config
        return masks_file.read_masks(self._paths, self._rows, config, shardings)

    def read_layer(self, index: int) -> dict[str, jax.Array]:
        """The masks [in, out] of one block, by leaf path; raises as `read`."""
        shapes = layer_shapes(self._config)
        paths = [path for path in self._paths if path in shapes] if self.found else []
        return {
            slot.path: read_part(slot, shapes[slot.path], np.dtype(bool), self._rows)
            for slot in names.slots(paths, [index])
        }

    @property
    def outside(self) -> dict[str, Entry]:
        """The packed masks of leaves outside the blocks, which only a file names."""
        paths = [path for path in names.TABLE if not names.is_stacked(path)]
        stored = self._masks or {}
        slots = names.slots(paths, ())
        return {slot.path: stored[slot.name] for slot in slots if slot.name in stored}

    @property
    def _paths(self) -> list[str]:
        """The leaves that have masks."""
        if self._masks is not None:
            return masks_file.masked_paths(self._masks, self._config)
        return _LINEARS

    def _rows(
        self, slot: Slot, start: int, stop: int
    ) -> Iterator[tuple[int, np.ndarray]]:
        """Rows of the mask of one tensor in the layout of the file; see `placed`."""
        weights = self._weights[slot.name]
        if self._masks is None:
            panels = weights.panels(start, stop)
            return ((first, layout.nonzero(rows)) for first, rows in panels)
        mask = self._masks[slot.name]
        return masks_file.checked_rows(mask, weights, start, stop)

    @functools.cached_property
    def _from_zeros(self) -> tuple[bool, str]:
        """Whether zeros are masks, and in words."""
        count = self._count
        size, kept, chance = distributed.on_lead(count) if self._shared else count()
        zeros = size - kept
        if zeros <= chance:
            words = f"masks: none, dense ({zeros} of {size} linear weights are zero)"
            return False, words
        words = (
            f"masks: from exact zeros in the linear matrices ({zeros} of {size} "
            f"weights, {100 * zeros / size:.2f} %)"
        )
        if distributed.is_lead() or not self._shared:
            _log.warning("%s: no %s; %s", self._directory, MASKS, words)
        return True, words

    def _count(self) -> list[int]:
        """Weights of the linears, those not zero, and how many zeros mean nothing."""
        size = kept = 0
        chance = 0.0
        for slot in names.slots(_LINEARS, range(self._config.n_layers)):
            entry = self._weights[slot.name]
            bits = entry.scheme.bits if isinstance(entry, QuantizedEntry) else 0
            chance += _CHANCE_ZEROS[bits] * math.prod(entry.shape)
            for _, rows in entry.panels():
                size += rows.size
                kept += int(np.count_nonzero(layout.nonzero(rows)))
        return [size, kept, int(chance)]
