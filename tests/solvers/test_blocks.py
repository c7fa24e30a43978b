"""The parts of SparseGPT: the sweep, the selections, the column rule's memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparse_jax.solvers import hessian, oracle, solve
from sparse_jax.solvers import sparsegpt as sparsegpt_module
from sparse_jax.solvers.blocks import padded_columns, sweep, tile_width
from sparse_jax.solvers.choose import keep_of_group, keep_units
from sparse_jax.sparsity import NM, Unstructured
from sparse_jax.sparsity.select import cut
from tests.solvers.helpers import make_problem


@pytest.mark.parametrize(("tile", "block"), [(4, 4), (16, 4), (32, 2), (8, 1)])
def test_a_block_absorbs_every_column_before_it_once(tile, block):
    n = 3 * tile
    # absorbed[i, j] counts how often column i took up what column j had changed.
    visited, absorbed = jnp.zeros(n, jnp.int32), jnp.zeros((n, n), jnp.int32)
    columns = jnp.arange(n)

    def leaf(start, carry):
        visited, absorbed, late = carry
        here = (columns >= start) & (columns < start + block)
        complete = absorbed.sum(1) == start
        late |= jnp.any(here & ~complete)
        return visited + here, absorbed, late

    def absorb(start, source, width, carry):
        visited, absorbed, late = carry
        target = (columns >= start) & (columns < start + width)
        origin = (columns >= source) & (columns < source + width)
        late |= jnp.any(origin & (visited == 0))
        return visited, absorbed + (target[:, None] & origin), late

    carry = (visited, absorbed, jnp.bool_(False))
    visited, absorbed, late = sweep(leaf, absorb, n, tile, block, carry)
    assert (visited == 1).all() and not late
    block_of = np.arange(n) // block
    np.testing.assert_array_equal(absorbed, block_of[:, None] > block_of)


@pytest.mark.parametrize("block", [1, 5, 32, 48, 128, 700])
@pytest.mark.parametrize("n", [1, 100, 640, 4096, 11008])
def test_tiles_are_whole_blocks_and_pad_little(n, block):
    tile, padded = tile_width(n, block), padded_columns(n, block)
    assert tile % block == 0 and padded % tile == 0
    blocks = -(-n // block) * block
    assert blocks <= padded <= max(blocks, n + n // 64)


@pytest.mark.parametrize("kind", ["distinct", "ties", "equal", "infinities"])
def test_the_cut_is_that_of_a_sort(kind):
    rng = np.random.default_rng(0)
    keys = rng.integers(0, 2**32 - 1, (12, 20), np.uint32)
    if kind == "ties":
        keys //= 2**30
    elif kind == "equal":
        keys[:] = 7
    elif kind == "infinities":
        keys = np.where(keys % 3 == 0, np.uint32(0x007FFFFF), np.uint32(0xFF800000))
    find = jax.jit(cut)
    for n in (0, 1, 17, 120, 239, 240):
        bound, below = find(jnp.asarray(keys), n)
        assert (keys < int(bound)).sum() == below <= n
        assert below == n or (keys == int(bound)).sum() > n - below


def test_units_are_those_of_a_sort():
    rng = np.random.default_rng(0)
    v, rt = rng.normal(size=(8, 6)).astype(np.float32), np.eye(8, dtype=np.float32)
    v[:, 3] = v[:, 2]  # ties
    v[5] = 0.0
    real, prior = np.arange(8) < 7, rng.random((8, 6)) < 0.9
    cost = np.where(prior, v**2, -np.inf).T[:, :7]
    arrays = [jnp.asarray(array) for array in (v, rt, real, prior)]
    for n_pruned in (0, 9, 20, 42):
        kept = keep_units(*arrays, jnp.int32(n_pruned), (1, 1), False)
        # In the order (out, in), the first of equal costs is kept.
        order = np.argsort(cost.ravel()[::-1], kind="stable")
        expected = np.ones(42, bool)
        expected[41 - order[:n_pruned]] = False
        np.testing.assert_array_equal(kept[:7].T, expected.reshape(6, 7))
        assert kept[7].all()
    kept = keep_units(*arrays, jnp.int32(9), (1, 1), True)
    np.testing.assert_array_equal(kept[:7].T, cost > np.sort(cost.ravel())[9])


@pytest.mark.parametrize("m", [1, 4, 24])
def test_groups_are_those_of_a_sort(m):
    rng = np.random.default_rng(0)
    saliency = np.round(rng.normal(size=(m, 30)) * 3).astype(np.float32)
    prior = rng.random((m, 30)) < 0.8
    order = np.argsort(-np.where(prior, saliency**2, -np.inf), 0, kind="stable")
    for n_kept in (0, m // 2, m):
        expected = np.zeros((m, 30), bool)
        np.put_along_axis(expected, order[:n_kept], True, 0)
        kept = keep_of_group(jnp.asarray(saliency), jnp.asarray(prior), n_kept)
        np.testing.assert_array_equal(kept, expected & prior)


@pytest.mark.parametrize("pattern", [Unstructured(0.6), NM(12, 20)], ids=str)
def test_several_tiles_equal_the_oracle(pattern):
    W, H = make_problem(8, 640, n_dead=3)
    expected, mask = oracle.sparsegpt(W, H, pattern, block_size=32)
    solution = solve("sparsegpt", W, H, pattern)
    assert np.mean(mask != solution.mask) <= 5e-4
    error = oracle.relative_error(W, expected, H)
    assert solution.relative_error == pytest.approx(error, rel=1e-3)


def arguments_of_prune(n_out, n_in, block):
    shape = jax.ShapeDtypeStruct
    factor = (
        shape((1, n_in, n_in), jnp.float32),
        shape((1, n_in // block, block, block), jnp.float32),
        shape((1, n_in), bool),
    )
    weights, prior = shape((n_in, n_out), jnp.float32), shape((n_in, n_out), bool)
    return weights, factor, prior, shape((n_in // block,), jnp.int32), None


def test_the_weights_are_pruned_in_place():
    n = 512
    memory = (
        sparsegpt_module._prune.lower(
            *arguments_of_prune(64, n, 8), unit=(1, 1), group=0, reference=False
        )
        .compile()
        .memory_analysis()
    )
    # The weights' memory takes what was removed, and the prior's the mask.
    assert memory.alias_size_in_bytes == 5 * 64 * n
    assert memory.temp_size_in_bytes < 4 * (n * n + 4 * 64 * n)


def test_everything_lowers_for_tpus():
    platforms = {"lowering_platforms": ("tpu",)}
    factorize = hessian._factorize.trace(jnp.zeros((1, 64, 64)), jnp.zeros(1), 32)
    prune = sparsegpt_module._prune.trace(
        *arguments_of_prune(8, 64, 32), unit=(1, 1), group=0, reference=True
    )
    for traced in (factorize, prune):
        assert "callback" not in traced.lower(**platforms).as_text()
