"""A small random model that the tests of this folder write and read."""

import functools

import jax
import numpy as np
import pytest

from sparse_jax.models import LlamaConfig, abstract_params

CONFIG = LlamaConfig(
    vocab_size=48, d_model=16, d_ff=24, n_layers=3, n_heads=4, n_kv_heads=2
)


@pytest.fixture
def config() -> LlamaConfig:
    return CONFIG


@functools.cache
def random_params(config: LlamaConfig) -> dict:
    """Every leaf random, biases and norms too; NumPy, so that nothing compiles."""
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda leaf: jax.device_put(rng.standard_normal(leaf.shape, np.float32)),
        abstract_params(config),
    )


@pytest.fixture
def make_params():
    """Config -> random parameters."""
    return lambda config: jax.tree.map(lambda leaf: leaf, random_params(config))


@pytest.fixture
def params(make_params) -> dict:
    return make_params(CONFIG)
