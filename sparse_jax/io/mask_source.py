"""Where the masks of a Hugging Face directory come from: its file, else its zeros."""

import functools
import logging
import re
from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np

from sparse_jax.io import layout, masks_file, names
from sparse_jax.io.entries import layer_shapes
from sparse_jax.io.safetensors_file import Entry
from sparse_jax.models.config import LlamaConfig
from sparse_jax.types import Masks

MASKS = "masks.safetensors"

_log = logging.getLogger(__name__)

# Dense weights hold a few zeros by chance, float16 ones about one in a million.
_CHANCE_ZEROS = 1e-3


class MaskSource:
    """The masks of a model on disk, read one at a time.

    They are its `masks.safetensors`, checked against the weights whenever a mask is
    read; else the exact zeros of the seven linear matrices per block, if there are more
    than one in a thousand, which is logged. Without the file, the first question counts
    the zeros, in one pass over the linears.
    """

    def __init__(
        self, directory: Path, config: LlamaConfig, entries: Mapping[str, Entry]
    ):
        """Checks the file's header.

        Args:
          directory: may hold a `masks.safetensors`.
          config: architecture.
          entries: its weights, see `open_entries`.

        Raises:
          InputError: the file is damaged, or belongs to another model.
        """
        self._directory, self._config, self._weights = directory, config, entries
        self._file = directory / MASKS
        self._masks: dict[str, Entry] | None = None
        if self._file.is_file():
            self._masks = masks_file.open_masks(self._file, config)

    @property
    def found(self) -> bool:
        """Whether the model has masks."""
        return self._masks is not None or self._from_zeros[0]

    @property
    def words(self) -> str:
        """Where the masks come from, in words."""
        return (
            f"masks: from {MASKS}" if self._masks is not None else self._from_zeros[1]
        )

    def read(self) -> Masks:
        """All masks: the tree of params, True = kept, None = dense."""
        return masks_file.read_masks(self._bits, self._config)

    def read_layer(self, index: int) -> dict[str, jax.Array]:
        """The masks [in, out] of one block, by leaf path; raises as `_bits`."""
        if not self.found:
            return {}
        slots = names.slots(layer_shapes(self._config), [index])
        found = ((slot, self._bits(slot)) for slot in slots)
        return {
            slot.path: masks_file.to_leaf(slot, bits)
            for slot, bits in found
            if bits is not None
        }

    @property
    def outside(self) -> dict[str, Entry]:
        """The packed masks of leaves outside the blocks, which only a file names."""
        paths = [path for path in names.TABLE if not names.is_stacked(path)]
        stored = self._masks or {}
        slots = names.slots(paths, ())
        return {slot.path: stored[slot.name] for slot in slots if slot.name in stored}

    def _bits(self, slot: names.Slot) -> np.ndarray | None:
        """The mask of one tensor in the layout of the file, None = dense.

        Raises:
          InputError: a weight that is marked as pruned is not zero.
        """
        weights = self._weights[slot.name]
        if self._masks is None:
            if not re.fullmatch(names.LINEAR_KERNELS, slot.path):
                return None
            kept = np.empty(weights.shape, bool)
            for start, rows in weights.panels():
                kept[start : start + len(rows)] = layout.nonzero(rows)
            return kept
        if slot.name not in self._masks:
            return None
        mask = self._masks[slot.name]
        return masks_file.read_checked(mask, weights.panels(), weights.shape)

    @functools.cached_property
    def _from_zeros(self) -> tuple[bool, str]:
        size = kept = 0
        for slot in names.slots(
            layer_shapes(self._config), range(self._config.n_layers)
        ):
            if re.fullmatch(names.LINEAR_KERNELS, slot.path):
                for _, rows in self._weights[slot.name].panels():
                    size += rows.size
                    kept += int(np.count_nonzero(layout.nonzero(rows)))
        zeros = size - kept
        if zeros <= _CHANCE_ZEROS * size:
            words = f"masks: none, dense ({zeros} of {size} linear weights are zero)"
            return False, words
        words = (
            f"masks: from exact zeros in the linear matrices ({zeros} of {size} "
            f"weights, {100 * zeros / size:.2f} %)"
        )
        _log.warning("%s: no %s; %s", self._directory, MASKS, words)
        return True, words
