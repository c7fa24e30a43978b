"""The cache, and models read on behind it, against models read at once."""

import dataclasses
import functools
import importlib.util
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparse_jax import io
from sparse_jax.models import cache as caches
from sparse_jax.models import decode, embed, forward, head
from sparse_jax.models.layers import rope_frequencies

_FILE = pathlib.Path(__file__).parents[1] / "parity" / "parity_cases.py"
_SPEC = importlib.util.spec_from_file_location("parity_cases", _FILE)
cases = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(cases)


@functools.partial(jax.jit, static_argnames="config")
def extend(params, tokens_BT, cache, config, counts, ends):
    x_BD, cache = decode.extend(
        params, embed(params, tokens_BT), cache, config, counts=counts, ends=ends
    )
    return x_BD @ head(params, x_BD.dtype), cache


logits = jax.jit(forward, static_argnums=2)


def whole(params, tokens_BT, cache, config):
    """All tokens of every row are new, and the last ones."""
    counts = np.full(tokens_BT.shape[0], tokens_BT.shape[1], np.int32)
    ends = np.asarray(cache.lengths) + counts
    return extend(params, tokens_BT, cache, config, counts, ends)


@pytest.fixture(scope="module")
def golden():
    with np.load(cases.GOLDEN, allow_pickle=False) as arrays:
        return dict(arrays)


# What is inside a block is shared with training, whose golden test has all options.
@pytest.mark.parametrize(
    "case",
    [
        "one_kv_head",
        "norm_eps",
        "rope_linear",
        "rope_dynamic_short",
        "rope_dynamic_long",
        "everything",
    ],
)
def test_every_option_agrees_with_transformers_piece_by_piece(case, golden, tmp_path):
    directory = cases.write(case, tmp_path / case)
    config, params = io.load_config(directory), io.load(directory)
    tokens_BT = cases.tokens(case)
    # Dynamic RoPE beyond its length is another function of it at every token.
    size = 48 if case == "rope_dynamic_long" else 4
    cache = caches.empty(config, 2, 64)
    for start in range(0, tokens_BT.shape[1], size):
        piece_BT = tokens_BT[:, start : start + size]
        logits_BV, cache = whole(params, piece_BT, cache, config)
        cases.assert_agree(np.asarray(logits_BV), golden[case][:, start + size - 1])
    assert cache.lengths.tolist() == [tokens_BT.shape[1]] * 2


@pytest.fixture
def logits_of(params, config):
    """The logits after a sequence, by the whole model at once."""

    def run(ids):
        tokens_BT = np.zeros((1, 16), np.int32)  # causal: what follows does not matter
        tokens_BT[0, : len(ids)] = ids
        return np.asarray(logits(params, tokens_BT, config))[0, len(ids) - 1]

    return run


def close(found, expected):
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)


def test_rows_of_different_lengths_are_read_as_alone(params, config, logits_of):
    """Padding, pieces, a row that rests and one that is shortened change nothing."""
    rng = np.random.default_rng(3)
    long, short = rng.integers(0, 40, 11).tolist(), rng.integers(0, 40, 5).tolist()
    tokens_BT = np.zeros((2, 8), np.int32)
    tokens_BT[0], tokens_BT[1, :5] = long[:8], short
    cache = caches.empty(config, 2, 16)
    lengths = np.array([11, 5], np.int32)
    found, cache = extend(
        params, tokens_BT, cache, config, np.array([8, 5], np.int32), lengths
    )
    close(found[0], logits_of(long[:8]))
    close(found[1], logits_of(short))
    tokens_BT[0, :3], tokens_BT[0, 3:] = long[8:], 7  # what follows must not matter
    found, cache = extend(
        params, tokens_BT, cache, config, np.array([3, 0], np.int32), lengths
    )
    close(found[0], logits_of(long))
    assert cache.lengths.tolist() == [11, 5]
    cache = caches.with_lengths(cache, np.array([4, 5]))
    tokens_BT[0, :2], tokens_BT[1, :2] = [1, 2], [3, 4]
    counts = np.array([2, 2], np.int32)
    found, cache = extend(
        params, tokens_BT, cache, config, counts, np.array([6, 7], np.int32)
    )
    close(found[0], logits_of([*long[:4], 1, 2]))
    close(found[1], logits_of([*short, 3, 4]))


def test_a_full_cache_is_left_as_it_is(config):
    cache = caches.empty(config, 1, 4)
    layer = dataclasses.replace(cache.layer(0), lengths_B=jnp.array([3]))
    shape = (1, 3, config.kv_heads, config.head_width)
    grown = layer.append(jnp.ones(shape), 2 * jnp.ones(shape))
    keys, values = grown.read()
    assert keys.shape == values.shape == (1, 4, *shape[2:])
    assert keys[0, :, 0, 0].tolist() == [0, 0, 0, 1]
    assert values[0, :, 0, 0].tolist() == [0, 0, 0, 2]


def test_rows_are_taken_put_and_kept_when_the_cache_grows(config):
    rng = np.random.default_rng(0)
    cache = jax.tree.map(
        lambda leaf: jnp.asarray(rng.integers(1, 9, leaf.shape), leaf.dtype),
        caches.empty(config, 3, 4),
    )
    grown = caches.grow(cache, 8)
    assert grown.capacity == 8 and cache.capacity == 4
    assert grown.nbytes == 2 * cache.nbytes
    for layer in range(config.n_layers):
        for old, new in zip(
            cache.layer(layer).read(), grown.layer(layer).read(), strict=True
        ):
            assert (new[:, :4] == old).all() and (new[:, 4:] == 0).all()
    assert caches.grow(grown, 4) is grown
    taken = caches.take(cache, np.array([2, 0]))
    assert taken.lengths.tolist() == [cache.lengths[2], cache.lengths[0]]
    old = np.asarray(cache.keys[1])
    put = caches.put(cache, np.array([1, 9]), taken)  # 9 is nowhere
    assert (np.asarray(put.keys[1]) == old[[0, 2, 2]]).all()
    assert put.lengths[1] == taken.lengths[0]


def test_capacities_are_few_and_end_at_the_context(config):
    small = dataclasses.replace(config, max_seq_len=3000)
    found = {caches.capacity_for(n, small) for n in range(1, 3001)}
    assert found == {64, 128, 256, 512, 1024, 2048, 3000}
    assert all(caches.capacity_for(n, small) >= n for n in range(1, 3001))


def test_dynamic_rope_grows_with_the_length_of_each_row(config):
    rope = dataclasses.replace(config.rope, kind="dynamic", factor=4.0)
    lengths = np.array([5, 16, 40])
    together = rope_frequencies(rope, 16, 16, jnp.array(lengths))
    assert together.shape == (3, 8)
    for row, length in enumerate(lengths.tolist()):
        alone = rope_frequencies(rope, 16, 16, length)
        np.testing.assert_allclose(together[row], alone, rtol=2e-6)
    assert (together[2, 1:] < together[1, 1:]).all()
