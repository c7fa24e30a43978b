"""A model on disk of which one block is in memory at a time."""

import functools
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
from jaxtyping import Float, Int

from sparse_jax.data.tokenizer import Tokenizer
from sparse_jax.io import huggingface, names
from sparse_jax.io.adapter_file import ADAPTER, find_adapter
from sparse_jax.io.compressed_tensors import QuantizedEntry
from sparse_jax.io.config_json import load_config
from sparse_jax.io.entries import leaf_shapes, open_entries
from sparse_jax.io.locate import locate, model_tokenizer
from sparse_jax.io.mask_source import MaskSource
from sparse_jax.io.quantized_reader import found_activations, found_grids
from sparse_jax.io.safetensors_file import Entry
from sparse_jax.io.weight_files import CODES
from sparse_jax.models import sizes
from sparse_jax.quant import Grid
from sparse_jax.types import InputError, Params


def open_blocks(path: str | Path, *, merge: bool = False) -> "BlockReader":
    """Finds a model and checks all of it but its weights, without loading it.

    Args:
      path: a Hugging Face, stage or run directory, see `resolve`.
      merge: read a matrix that has an adapter, low-rank factors or outliers, as the
        dense sum of all; else a model that has one is refused, so that nothing drops it
        silently.

    Raises:
      InputError: no model, a damaged one, one of another architecture, or only a size;
        or an adapter, without `merge`.
    """
    if str(path) in sizes.SIZES and not Path(path).exists():
        raise InputError(
            f"{str(path)!r} is a size, which has no weights; name a directory that "
            "holds a model"
        )
    directory, words = locate(Path(path))
    return BlockReader(directory, words, merge=merge)


class BlockReader:
    """A Hugging Face directory read block by block; see `open_blocks`.

    Reading changes nothing that `load` and `resolve` would give: weights are float32,
    kernels [in, out]. With an adapter, weights are merged, masks those of the pruned
    part.

    Attributes:
      directory: the Hugging Face directory.
      config: architecture.
      entries: tensor name -> where it lies.
      dtype: stored dtype; of different ones, one that holds them all. Quantised
        matrices count as float32, which holds code * scale.
      quantized: the dtypes of the codes of quantised matrices, such as "int4"; nothing
        where there are none.
      activations: how the inputs of these are rounded; None = not at all.
      unquantized_dtype: as `dtype`, of the other tensors.
    """

    def __init__(self, directory: Path, words: str, *, merge: bool = False):
        """Checks every header.

        Args:
          directory: a Hugging Face directory.
          words: what it is.
          merge: see `open_blocks`.

        Raises:
          InputError: see `open_blocks`.
        """
        self.directory = directory
        self.config = load_config(directory)
        stored = open_entries(directory, self.config)
        self._adapter = find_adapter(directory, self.config)
        if self._adapter is not None and not merge:
            raise InputError(
                f"{directory}: holds an adapter ({ADAPTER}), which would be lost: only "
                "the stored weights are taken here; name a model without one, or move "
                "that file away to do without it"
            )
        self.entries = self._adapter.merged(stored) if self._adapter else stored
        self.dtype = _widest([*self.entries.values()])
        codes, others = [], []
        for entry in stored.values():
            (codes if isinstance(entry, QuantizedEntry) else others).append(entry)
        self.quantized = tuple(sorted({f"int{entry.scheme.bits}" for entry in codes}))
        self.activations = found_activations(stored, self.config)
        self.unquantized_dtype = _widest(others)
        self._shapes = leaf_shapes(self.config)
        self._words, self._stored_entries = words, stored
        self._masks = MaskSource(directory, self.config, stored)

    @property
    def masked(self) -> bool:
        """Whether the model is pruned; see `MaskSource`."""
        return self._masks.found

    @property
    def source(self) -> str:
        """In words, what the model was and where its masks come from."""
        words = f"{self._words}; {self._masks.words}"
        return f"{words}; {self._adapter.words}, merged" if self._adapter else words

    @functools.cached_property
    def tokenizer(self) -> Tokenizer | None:
        """The model's own tokenizer; None when it carries none.

        Raises:
          InputError: it is damaged, or larger than the vocabulary.
        """
        return model_tokenizer(self.directory, self.config)

    def layer(self, index: int) -> Params:
        """One block's weights: `params["layers"]` at one layer.

        Raises:
          InputError: a file has become shorter.
        """
        return huggingface.read_layer(self.entries, self.config, index)

    def layer_masks(self, index: int) -> dict[str, jax.Array]:
        """One block's masks [in, out] by leaf path, "layers/attention/q/kernel".

        Returns:
          True = kept; nothing for a dense matrix.

        Raises:
          InputError: a weight that is marked as pruned is not zero.
        """
        return self._masks.read_layer(index)

    def layer_grids(self, index: int) -> dict[str, Grid]:
        """The grids of one block's quantised matrices [in, out], by leaf path.

        Raises:
          InputError: a file has become shorter.
        """
        found = found_grids(self._stored_entries, self.config, layers=[index])
        return {path: grid for (path, _), grid in found.items()}

    @property
    def outside_masks(self) -> dict[str, Entry]:
        """Where the masks of leaves outside the blocks lie, by leaf path."""
        return self._masks.outside

    def leaf(self, path: str) -> jax.Array:
        """A whole leaf that is not stacked, such as "final_norm/scale"."""
        (slot,) = names.slots([path], ())
        return huggingface.read_tensor(self.entries, slot, self._shapes[path])

    def rows(self, path: str, start: int, stop: int) -> Float[np.ndarray, "rows D"]:
        """Rows [start, stop) of a leaf as it lies in the file: [V, D].

        Args:
          path: "embed/embedding" or, unless it is tied, "lm_head/kernel".
          start: first row.
          stop: one more than the last.
        """
        return self._stored(path).rows(start, stop).astype(np.float32, copy=False)

    def embed(
        self, ids: Int[jax.Array | np.ndarray, "*lead"]
    ) -> Float[np.ndarray, "*lead D"]:
        """Token embeddings; each distinct id's row is read once.

        Raises:
          InputError: an id is outside the vocabulary.
        """
        entry = self._stored("embed/embedding")
        distinct, inverse = np.unique(np.asarray(ids), return_inverse=True)
        self._check_ids(distinct)
        # Places in the output by row, so that only one panel of rows is held beside it.
        places = np.argsort(inverse, axis=None, kind="stable")
        row_of_place = inverse.reshape(-1)[places]
        embedded = np.empty((places.size, self.config.d_model), np.float32)
        for start in range(0, len(distinct), entry.panel_rows):
            rows = entry.take(distinct[start : start + entry.panel_rows])
            first, last = np.searchsorted(row_of_place, (start, start + len(rows)))
            embedded[places[first:last]] = rows[row_of_place[first:last] - start]
        return embedded.reshape(*ids.shape, self.config.d_model)

    def _stored(self, path: str) -> Entry:
        (slot,) = names.slots([path], ())
        return self.entries[slot.name]

    def _check_ids(self, distinct: np.ndarray) -> None:
        vocab_size = self.config.vocab_size
        for token in (distinct[:1], distinct[-1:]):
            if token.size and not 0 <= token[0] < vocab_size:
                raise InputError(
                    f"token ids must be in [0, {vocab_size}), found {token[0]}; is "
                    "this the model's tokenizer?"
                )


def _widest(entries: Sequence[Entry]) -> str:
    found = {entry.dtype for entry in entries}
    for dtype, code in CODES.items():
        if found == {code}:
            return dtype
    return "float32"  # neither half precision holds the other
