"""A model written block by block; what is written survives a kill."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import jax
import numpy as np

from sparse_jax.files import disk_errors, replace_file
from sparse_jax.io import adapter_file, export, huggingface, masks_file
from sparse_jax.io.adapter_file import ADAPTER
from sparse_jax.io.block_content import content_of
from sparse_jax.io.block_file import MASK, Block, Kind, Row, open_block, write_block
from sparse_jax.io.block_reader import BlockReader
from sparse_jax.io.entries import leaf_shapes
from sparse_jax.io.mask_source import MASKS
from sparse_jax.io.names import Slot
from sparse_jax.io.quantized_reader import found_activations, found_grids
from sparse_jax.io.safetensors_file import Entry
from sparse_jax.io.weight_files import CODES, Panels
from sparse_jax.models.config import LlamaConfig
from sparse_jax.quant import Activations, Grid
from sparse_jax.types import InputError, Params


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
        self._kind, self._shapes = Kind(config, dtype), leaf_shapes(config)
        self._blocks: dict[int, Block] = {}
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
        *,
        grids: Mapping[str, Grid] | None = None,
        activations: Activations | None = None,
        adapter: Mapping[str, jax.Array] | None = None,
    ) -> None:
        """Writes one block; when this returns, it is on the disk.

        Args:
          index: which block.
          layer_params: `params["layers"]` at one layer, pruned weights at zero.
          masks: [in, out] by leaf path, as of `BlockReader.layer_masks`; every block
            has masks of the same leaves.
          rows: anything JSON can hold, kept beside the weights.
          grids: by leaf path, of the quantised matrices [in, out], whose weights are on
            them.
          activations: how the inputs of these are rounded, in all blocks in the same
            way; static scales of this block, at least.
          adapter: what is added to the weights, by leaf path, of this layer; of the
            same leaves and shapes in all blocks.

        Raises:
          InputError: the disk is full or read-only, a weight does not fit into the
            writer's dtype or is not on its grid, or a grid fits no matrix.
          ValueError: a pruned weight is not zero, a leaf does not fit the config, or
            other blocks have masks or adapters of other leaves.
        """
        content, panels = content_of(
            index,
            self._kind,
            layer_params,
            masks,
            grids or {},
            activations,
            adapter or {},
        )
        for other, block in self._blocks.items():
            if other != index and not content.fits(block.content):
                raise ValueError(
                    f"blocks {other} and {index} differ in the leaves of masks or "
                    "adapters, or in activations"
                )
        with replace_file(self._file(index)) as partial:
            write_block(partial, index, self._kind, content, list(rows), panels)
        self._blocks[index] = self._open(index)

    def layer(self, index: int) -> Params:
        """A block's weights as they are stored, rounded, in float32."""
        return huggingface.read_layer(self._blocks[index].entries, self.config, index)

    def layer_masks(self, index: int) -> dict[str, jax.Array]:
        """A block's masks as they were given."""
        block = self._blocks[index]
        return {path: block.mask(path) for path in block.content.masked}

    def layer_grids(self, index: int) -> dict[str, Grid]:
        """The grids of a block's quantised matrices, by leaf path."""
        found = found_grids(self._blocks[index].entries, self.config, layers=[index])
        return {path: grid for (path, _), grid in found.items()}

    def layer_activations(self, index: int) -> Activations | None:
        """How the inputs of a block's quantised matrices are rounded."""
        entries = self._blocks[index].entries
        return found_activations(entries, self.config, layers=[index])

    def layer_adapter(self, index: int) -> dict[str, jax.Array]:
        """What is added to a block's weights, as it is stored."""
        block = self._blocks[index]
        return {path: block.added(path) for path in block.content.adapter}

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

        def stored(slot: Slot) -> Iterable[np.ndarray]:
            if slot.layer is not None:
                yield from _data(self._blocks[slot.layer].stored[slot.name])
                return
            for panel in _data(reader.entries[slot.name]):
                # Through float32, as the weights of a model in memory go.
                panel = panel.astype(np.float32, copy=False)
                yield export.cast(panel, self.dtype, slot.path)

        plans = {
            name: plan
            for block in self._blocks.values()
            for name, plan in block.content.plans.items()
        }
        tokenizer = reader.tokenizer.files if reader.tokenizer else {}
        export.write_model(
            Path(directory),
            self.config,
            self.dtype,
            stored,
            self._beside(reader.outside_masks, stored, quantized=bool(plans)),
            plans=plans,
            files=[*tokenizer.items(), *(extra_files or {}).items()],
        )

    def _beside(
        self, outside: Mapping[str, Entry], stored: Panels, *, quantized: bool
    ) -> dict[str, Callable[[Path], None]]:
        """What writes the files of masks and of what is added to the weights."""
        writers: dict[str, Callable[[Path], None]] = {}
        content = self._blocks[0].content

        def bits(slot: Slot) -> Iterable[np.ndarray]:
            if slot.layer is None:
                return _data(outside[slot.path])
            return _data(self._blocks[slot.layer].stored[MASK + slot.name])

        masked = [*content.masked, *outside]
        if masked or quantized:
            shapes = {path: self._shapes[path] for path in masked}
            writers[MASKS] = lambda path: masks_file.write_masks(path, shapes, bits)
        if content.adapter:
            layers, code = self.config.n_layers, CODES[self.dtype]
            added = {path: (layers, *shape) for path, shape in content.adapter.items()}
            writers[ADAPTER] = lambda path: adapter_file.write_adapter(
                path, added, self.config, code, stored
            )
        return writers

    def _file(self, index: int) -> Path:
        return self.work_dir / f"block-{index:05d}.safetensors"

    def _open(self, index: int) -> Block:
        block = open_block(self._file(index), index, self._kind)
        if any(not block.content.fits(b.content) for b in self._blocks.values()):
            raise InputError(
                f"{self._file(index)}: belongs to another model, dtype or pruning; "
                "delete it or choose another place"
            )
        return block


def _data(entry: Entry) -> Iterable[np.ndarray]:
    return (panel for _, panel in entry.panels())
