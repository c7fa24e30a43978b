"""What pruning needs on a mesh, as far as one device shows it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparse_jax.models import Compute, LlamaConfig, init
from sparse_jax.prune import Activations, ParamsBlocks, walk
from sparse_jax.prune.rows import Rows
from sparse_jax.sparsity import Unstructured
from sparse_jax.types import InputError

CONFIG = LlamaConfig(vocab_size=32, d_model=8, d_ff=16, n_layers=1, n_heads=2)


def test_one_device_moves_nothing():
    kernel = jnp.arange(6.0).reshape(2, 3)
    rows = Rows([3], [Unstructured(0.5)])
    assert rows.shards == 1
    with rows.use():
        matrix = rows.take(kernel)
    np.testing.assert_array_equal(matrix, kernel.T)
    np.testing.assert_array_equal(rows.give(matrix, kernel.sharding), kernel)


def test_samples_are_all_unless_said():
    batches = [jnp.ones((2, 3, 4)), jnp.ones((2, 3, 4))]
    assert Activations(batches).samples == 4
    assert Activations(batches, samples=3).samples == 3


def test_the_walk_knows_how_many_sequences_count():
    params = init(jax.random.key(0), CONFIG)
    tokens = np.zeros((5, 4), np.int32)
    outputs = walk(ParamsBlocks(params, CONFIG), tokens, Compute(), None, batch_size=2)
    assert outputs.samples == 5 and len(outputs) == 3


def test_several_processes_cannot_spool(tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(InputError, match="spool: 2 processes share the activations"):
        Activations([jnp.ones((2, 3, 4))], tmp_path / "spool")
    assert not (tmp_path / "spool").exists()
