"""A model written block by block; what is written survives a kill.

Every block is a safetensors file, `block-00003.safetensors`, of its Hugging Face
tensors in the dtype of the final model, the bits of their masks, as `masks_file` packs
them, under "mask.NAME", and the metadata

    format   "sparse_jax.block"
    version  "1"
    index    number of the block
    model    the `config.json` of the model
    rows     JSON: what its maker wants to remember
"""

import functools
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from sparse_jax.files import disk_errors, replace_file
from sparse_jax.io import export, huggingface, masks_file, names, safetensors_file
from sparse_jax.io.block_reader import BlockReader
from sparse_jax.io.config_json import config_to_json
from sparse_jax.io.entries import layer_shapes, leaf_shapes
from sparse_jax.io.mask_source import MASKS
from sparse_jax.io.names import Slot
from sparse_jax.io.safetensors_file import Entry, Tensor
from sparse_jax.io.weight_files import CODES, Panels
from sparse_jax.models.config import LlamaConfig
from sparse_jax.tree import leaf_paths
from sparse_jax.types import InputError, Params

Row = dict[str, Any]

_FORMAT = {"format": "sparse_jax.block", "version": "1"}
_MASK = "mask."


class _Block(NamedTuple):
    """A block that is on the disk; `masked` are the leaf paths that have masks."""

    entries: dict[str, Entry]
    masked: list[str]
    rows: list[Row]


def _nothing(slot: Slot) -> Iterable[np.ndarray]:
    return ()


class BlockWriter:
    """The blocks of a new model; each appears whole or not at all.

    Attributes:
      work_dir: where the blocks lie until the model is finished.
      config: architecture.
      dtype: dtype of the stored weights.
    """

    def __init__(self, work_dir: str | Path, config: LlamaConfig, dtype: str):
        """Continues with the blocks that `work_dir` holds already.

        Args:
          work_dir: made if it is not there.
          config: architecture.
          dtype: dtype of the stored weights.

        Raises:
          InputError: a block there is damaged or belongs to another model.
        """
        export.check_dtype(dtype)
        self.work_dir, self.config, self.dtype = Path(work_dir), config, dtype
        self._shapes = leaf_shapes(config)
        self._blocks: dict[int, _Block] = {}
        with disk_errors(self.work_dir):
            self.work_dir.mkdir(parents=True, exist_ok=True)
            for leftover in self.work_dir.glob(".block-*.partial"):
                leftover.unlink()  # of a run that was killed
        for index in range(config.n_layers):
            if self._file(index).exists():
                self._blocks[index] = self._open(index)

    @property
    def n_done(self) -> int:
        """Blocks 0 .. n_done - 1 are complete."""
        n_layers = self.config.n_layers
        return next((i for i in range(n_layers) if i not in self._blocks), n_layers)

    def write(
        self,
        index: int,
        layer_params: Params,
        masks: Mapping[str, jax.Array],
        rows: Sequence[Row],
    ) -> None:
        """Writes one block; when this returns, it is on the disk.

        Args:
          index: which block.
          layer_params: `params["layers"]` at one layer, pruned weights at zero.
          masks: [in, out] by leaf path, as of `BlockReader.layer_masks`; every block
            has masks of the same leaves.
          rows: anything JSON can hold, kept beside the weights.

        Raises:
          InputError: the disk is full or read-only, or a weight does not fit into the
            writer's dtype.
          ValueError: a pruned weight is not zero, a leaf does not fit the config, or
            other blocks have masks of other leaves.
        """
        leaves = leaf_paths({"layers": layer_params})
        export.check_shapes(leaves, masks, layer_shapes(self.config))
        for other, block in self._blocks.items():
            if other != index and set(block.masked) != set(masks):
                raise ValueError(f"blocks {other} and {index} mask different leaves")

        def weights(slot: Slot) -> Iterable[np.ndarray]:
            part, mask = leaves[slot.path], masks.get(slot.path)
            yield export.to_tensor(slot, part, mask, self.dtype)

        def bits(slot: Slot) -> Iterable[np.ndarray]:
            yield masks_file.pack(slot, masks[slot.path])

        tensors = self._tensors(index, masks, weights, bits)
        metadata = self._metadata(index) | {"rows": json.dumps(list(rows))}
        with replace_file(self._file(index)) as partial:
            safetensors_file.write(partial, tensors, metadata)
        self._blocks[index] = self._open(index)

    def layer(self, index: int) -> Params:
        """A block's weights as they are stored, rounded, in float32."""
        return huggingface.read_layer(self._blocks[index].entries, self.config, index)

    def layer_masks(self, index: int) -> dict[str, jax.Array]:
        """A block's masks as they were given."""
        entries, masked, _ = self._blocks[index]
        masks = {}
        for slot in names.slots(masked, [index]):
            shape = names.slot_shape(slot, self._shapes[slot.path])
            bits = masks_file.read_bits(entries[_MASK + slot.name], shape)
            masks[slot.path] = masks_file.to_leaf(slot, bits)
        return masks

    def rows(self, index: int) -> list[Row]:
        """A block's rows as they were given."""
        return self._blocks[index].rows

    def finish(
        self,
        directory: str | Path,
        reader: BlockReader,
        *,
        extra_files: Mapping[str, bytes] | None = None,
    ) -> None:
        """Writes the Hugging Face directory of the new model, all of it or nothing.

        Nothing is held but a few megabytes; files and bits are those of `save`. The
        work directory is left as it is.

        Args:
          directory: the new directory; absent or empty.
          reader: the model that gives all leaves outside the blocks, their masks and
            the tokenizer's files.
          extra_files: name -> content, written beside them.

        Raises:
          InputError: as `save`.
          ValueError: a block is missing, or `reader` has another architecture.
        """
        if self.n_done < self.config.n_layers:
            raise ValueError(f"{self.work_dir}: block {self.n_done} is missing")
        if reader.config != self.config:
            raise ValueError(f"{reader.directory}: has another architecture")

        def weights(slot: Slot) -> Iterable[np.ndarray]:
            if slot.layer is not None:
                yield from _data(self._blocks[slot.layer].entries[slot.name])
                return
            for panel in _data(reader.entries[slot.name]):
                # Through float32, as the weights of a model in memory go.
                panel = panel.astype(np.float32, copy=False)
                yield export.cast(panel, self.dtype, slot.path)

        outside = reader.outside_masks

        def bits(slot: Slot) -> Iterable[np.ndarray]:
            if slot.layer is None:
                return _data(outside[slot.path])
            return _data(self._blocks[slot.layer].entries[_MASK + slot.name])

        masked = [*self._blocks[0].masked, *outside]
        shapes = {path: self._shapes[path] for path in masked}
        write_masks = functools.partial(
            masks_file.write_masks, shapes=shapes, packed=bits
        )
        tokenizer = reader.tokenizer.files if reader.tokenizer else {}
        export.write_model(
            Path(directory),
            self.config,
            self.dtype,
            weights,
            {MASKS: write_masks} if shapes else {},
            files=[*tokenizer.items(), *(extra_files or {}).items()],
        )

    def _file(self, index: int) -> Path:
        return self.work_dir / f"block-{index:05d}.safetensors"

    def _metadata(self, index: int) -> dict[str, str]:
        model = json.dumps(config_to_json(self.config, self.dtype))
        return _FORMAT | {"index": str(index), "model": model}

    def _tensors(
        self,
        index: int,
        masked: Iterable[str],
        weights: Panels = _nothing,
        bits: Panels = _nothing,
    ) -> list[Tensor]:
        """What the file of a block holds; the leaves at `masked` have masks."""
        code = CODES[self.dtype]
        tensors = []
        for slot in names.slots(layer_shapes(self.config), [index]):
            shape = names.slot_shape(slot, self._shapes[slot.path])
            data = functools.partial(weights, slot)
            tensors.append(Tensor(slot.name, code, shape, data))
        for slot in names.slots(masked, [index]):
            shape = names.slot_shape(slot, self._shapes[slot.path])
            size, data = masks_file.packed_shape(shape), functools.partial(bits, slot)
            tensors.append(Tensor(_MASK + slot.name, "U8", size, data))
        return tensors

    def _open(self, index: int) -> _Block:
        """Checks the file of a block."""
        file = self._file(index)
        try:
            entries, metadata = safetensors_file.read_header(file)
        except InputError as error:
            raise InputError(
                f"{file}: truncated or damaged; delete it and run the same command "
                "again, which makes this block anew"
            ) from error
        slots = names.slots(layer_shapes(self.config), [index])
        masked = [slot.path for slot in slots if _MASK + slot.name in entries]
        expected = {
            tensor.name: (tensor.dtype, tensor.shape)
            for tensor in self._tensors(index, masked)
        }
        found = {name: (entry.dtype, entry.shape) for name, entry in entries.items()}
        rows = metadata.pop("rows", None)
        others = [block.masked for block in self._blocks.values()]
        if (
            metadata != self._metadata(index)
            or found != expected
            or rows is None
            or any(other != masked for other in others)
        ):
            raise InputError(
                f"{file}: belongs to another model, dtype or pruning; delete it or "
                "choose another place"
            )
        return _Block(entries, masked, json.loads(rows))


def _data(entry: Entry) -> Iterable[np.ndarray]:
    return (panel for _, panel in entry.panels())
