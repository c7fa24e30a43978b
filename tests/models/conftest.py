"""A tiny model with every leaf random."""

import functools

import jax
import numpy as np
import pytest

from sparse_jax.models import LlamaConfig, abstract_params

CONFIG = LlamaConfig(
    vocab_size=40,
    d_model=16,
    d_ff=24,
    n_layers=3,
    n_heads=4,
    n_kv_heads=2,
    max_seq_len=32,
)


@functools.cache
def random_params(config: LlamaConfig) -> dict:
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda leaf: jax.device_put(0.3 * rng.standard_normal(leaf.shape, np.float32)),
        abstract_params(config),
    )


@pytest.fixture
def config() -> LlamaConfig:
    return CONFIG


@pytest.fixture
def make_params():
    """Config -> random parameters; biases and norms are not trivial."""
    return random_params


@pytest.fixture
def params() -> dict:
    return random_params(CONFIG)


@pytest.fixture
def tokens() -> jax.Array:
    rng = np.random.default_rng(1)
    return jax.device_put(rng.integers(0, CONFIG.vocab_size, (2, 12), np.int32))
