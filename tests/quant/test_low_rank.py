import jax.numpy as jnp
import numpy as np
import pytest

from sparse_jax.quant import GridConfig, fit, low_rank, low_rank_bits, round_to_grid

RNG = np.random.default_rng(0)
LOST = RNG.normal(size=(24, 40)).astype(np.float32)
SIZE = np.exp(RNG.normal(size=24)).astype(np.float32)


def weighted(lost):
    return float(np.sum((SIZE[:, None] * np.asarray(lost)) ** 2))


@pytest.mark.parametrize("rank", [1, 5, 24])
def test_it_is_the_best_of_its_rank_by_weighted_error(rank):
    x, s = low_rank(jnp.asarray(LOST), jnp.asarray(SIZE), rank)
    assert x.shape == (24, rank) and s.shape == (rank, 40)
    values = np.linalg.svd(SIZE[:, None].astype(np.float64) * LOST, compute_uv=False)
    least = float(np.sum(values[rank:] ** 2))
    # The factors are kept in bfloat16.
    assert least <= weighted(LOST - x @ s) + 1e-3
    assert weighted(LOST - x @ s) <= least + 1e-4 * weighted(LOST)


def test_saliency_decides_which_inputs_are_mended():
    plain = low_rank(jnp.asarray(LOST), jnp.ones(24), 5)
    salient = low_rank(jnp.asarray(LOST), jnp.asarray(SIZE), 5)
    assert weighted(LOST - salient[0] @ salient[1]) < weighted(
        LOST - plain[0] @ plain[1]
    )


def test_silent_inputs_do_not_blow_up():
    size = jnp.asarray(SIZE).at[:4].set(0.0)
    x, s = low_rank(jnp.asarray(LOST), size, 3)
    assert np.isfinite(x).all() and np.isfinite(s).all()
    x, s = low_rank(jnp.asarray(LOST), jnp.zeros(24), 3)
    assert np.isfinite(x @ s).all()


def test_rounded_factors_lie_on_their_grids_and_still_help():
    grid = GridConfig(bits=4, group=8)
    x, s = low_rank(jnp.asarray(LOST), jnp.asarray(SIZE), 5, grid)
    for factor in (x, s):
        again = round_to_grid(factor, fit(factor, grid, axis=-2), axis=-2)
        np.testing.assert_allclose(again, factor, rtol=1e-2, atol=1e-6)
    assert weighted(LOST - x @ s) < 0.9 * weighted(LOST)


def test_bits_count_both_factors_and_their_scales():
    assert low_rank_bits(3, 100, 50) == 16 * 3 * 150
    grid = GridConfig(bits=4, group=16)
    # 7 groups of the 100 inputs, 1 group of the rank, a scale of 16 bits each.
    assert low_rank_bits(3, 100, 50, grid) == 4 * 3 * 150 + 16 * (7 * 3 + 1 * 50)
