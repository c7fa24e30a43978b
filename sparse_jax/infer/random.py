"""Models with random weights, for tests and for measuring speed."""

import re
from functools import partial
from typing import Any

import jax
import numpy as np
from jaxtyping import Bool

from sparse_jax.io import PackedModel, names
from sparse_jax.io.entries import leaf_shapes
from sparse_jax.io.packed_file import EMBEDDING, HEAD
from sparse_jax.kernels import Packed, pack
from sparse_jax.models.config import LlamaConfig
from sparse_jax.tree import from_paths


def random_model(
    config: LlamaConfig,
    kind: str,
    *,
    sparsity: float = 0.0,
    head: str = "dense_float32",
    seed: int = 0,
    alike: bool = False,
) -> PackedModel:
    """A model with random weights.

    Args:
      config: architecture.
      kind: storage type of the matrices in its layers.
      sparsity: their share of zeros, which lie as the type likes them: as many in all
        16 inputs for N:16 types, in whole groups for group types, else anywhere.
      head: storage type of the head, a dense one.
      seed: of the weights.
      alike: matrices of one shape hold the same numbers, each in its own memory; this
        is much faster.
    """
    rng = np.random.default_rng(seed)
    make = partial(_matrix, rng, sparsity=sparsity)
    known: dict[tuple[int, int], Packed] = {}

    def matrix(shape: tuple[int, int]) -> Packed:
        if not alike:
            return make(shape, kind)
        if shape not in known:
            known[shape] = make(shape, kind)
        return jax.tree.map(np.copy, known[shape])

    leaves: dict[str, Any] = {}
    for path, shape in leaf_shapes(config).items():
        if re.fullmatch(names.LINEAR_KERNELS, path):
            sides = shape[2], shape[1]
            layers = range(config.n_layers)
            leaves[path] = tuple(_placed(matrix(sides)) for _ in layers)
        elif path == HEAD:
            leaves[path] = _placed(_matrix(rng, (shape[1], shape[0]), head))
        elif path == EMBEDDING and config.tie_embeddings:
            leaves[path] = leaves[HEAD] = _placed(
                _matrix(rng, (shape[0], shape[1]), head)
            )
        else:
            values = rng.standard_normal(shape, np.float32)
            leaves[path] = jax.device_put(1 + values if "norm" in path else values)
    return PackedModel(
        config=config,
        params=from_paths(leaves),
        tokenizer=None,
        source=f"random weights, {kind}, sparsity {sparsity}",
    )


def random_mask(
    rng: np.random.Generator, shape: tuple[int, int], kind: str, sparsity: float
) -> Bool[np.ndarray, "out in"]:
    """Zeros as a storage type likes them; see `random_model`. True = kept."""
    if sparsity == 0:
        return np.ones(shape, bool)
    blocks = (shape[0], shape[1] // 16, 16)
    if kind.startswith("n16_"):
        rank = rng.random(blocks, np.float32).argsort(axis=2)
        return (rank < round(16 * (1 - sparsity))).reshape(shape)
    if kind.startswith("group_"):
        return np.repeat(rng.random(blocks[:2]) >= sparsity, 16, axis=1)
    return rng.random(shape, np.float32) >= sparsity


def _matrix(
    rng: np.random.Generator, shape: tuple[int, int], kind: str, sparsity: float = 0.0
) -> Packed:
    w_OI = rng.standard_normal(shape, np.float32) / np.float32(np.sqrt(shape[1]))
    kept_OI = random_mask(rng, shape, kind, sparsity)
    return pack(kind, w_OI * kept_OI, kept_OI)


def _placed(leaf: Packed) -> Packed:
    return jax.tree.map(jax.device_put, leaf)
