"""Models ready to be generated from: packed files, and directories packed in memory."""

import re
from pathlib import Path

import jax
import numpy as np

from sparse_jax import io
from sparse_jax.infer.matrices import Matrices
from sparse_jax.io import PackedModel, names
from sparse_jax.io.entries import leaf_shapes
from sparse_jax.io.packed_file import EMBEDDING, HEAD
from sparse_jax.io.packed_layout import is_packed
from sparse_jax.kernels import Packed, find_format, pack
from sparse_jax.tree import from_paths, leaf_paths


def load_model(path: str | Path) -> PackedModel:
    """Loads what `--model` names.

    A packed file is mapped into memory. The matrices of a directory (Hugging Face, run
    or stage) are packed in memory, dense, in a type that holds them exactly: what a
    pruned model gains, only its packed file shows.

    Raises:
      InputError: no model, a damaged one, or a size without weights.
    """
    if is_packed(Path(path)):
        return io.read_packed(path)
    return pack_directory(path)


def pack_directory(path: str | Path) -> PackedModel:
    """A directory's model, dense in memory; raises as `io.open_blocks`.

    A low-rank adapter is merged into its matrices.
    """
    reader = io.open_blocks(path, merge=True)
    kind = f"dense_{'bfloat16' if reader.dtype == 'bfloat16' else 'float32'}"
    matrices, config = Matrices(reader), reader.config
    leaves = {}
    for leaf in leaf_shapes(config):
        slots = names.slots([leaf], range(config.n_layers))
        if leaf == HEAD or re.fullmatch(names.LINEAR_KERNELS, leaf):
            parts = tuple(_placed(matrices.pack_dense(kind, slot)) for slot in slots)
            leaves[leaf] = parts if names.is_stacked(leaf) else parts[0]
        elif leaf == EMBEDDING and config.tie_embeddings:
            leaves[leaf] = leaves[HEAD] = _placed(matrices.pack_dense(kind, slots[0]))
        else:
            arrays = [reader.entries[slot.name].read() for slot in slots]
            whole = np.stack(arrays) if names.is_stacked(leaf) else arrays[0]
            keep = leaf == EMBEDDING
            leaves[leaf] = jax.device_put(whole if keep else whole.astype(np.float32))
    return PackedModel(
        config=config,
        params=from_paths(leaves),
        tokenizer=reader.tokenizer,
        source=f"{reader.source}, packed in memory as {kind}",
    )


def repack(model: PackedModel, kind: str) -> PackedModel:
    """The same model with the matrices of its layers in another storage type.

    Quantised types round to nearest. A matrix that the type cannot hold by its number
    of inputs becomes dense_float32.

    Raises:
      InputError: the type is unknown, or cannot hold the zeros of a matrix.
    """
    multiple = find_format(kind).input_multiple

    def convert(leaf: Packed) -> Packed:
        fits = leaf.shape[1] % multiple == 0
        return _placed(pack(kind if fits else "dense_float32", leaf.unpack()))

    leaves = {
        path: tuple(map(convert, leaf)) if isinstance(leaf, tuple) else leaf
        for path, leaf in leaf_paths(model.params).items()
    }
    return PackedModel(
        config=model.config,
        params=from_paths(leaves),
        tokenizer=model.tokenizer,
        source=f"{model.source}, repacked as {kind}",
    )


def _placed(leaf: Packed) -> Packed:
    return jax.tree.map(jax.device_put, leaf)
