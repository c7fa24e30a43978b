import jax.numpy as jnp
import numpy as np

from sparse_jax.quant import (
    GridConfig,
    choose_outliers,
    fit,
    quantizer_with_outliers,
    round_to_grid,
    take_outliers,
)

RNG = np.random.default_rng(0)
W = RNG.normal(size=(12, 20)).astype(np.float32)


def test_the_hessian_ranks_by_what_removing_a_weight_costs():
    inverse = np.exp(RNG.normal(size=20)).astype(np.float32)
    chosen = np.asarray(choose_outliers(jnp.asarray(W), 7, jnp.asarray(inverse)))
    scores = W.astype(np.float64) ** 2 / inverse
    assert chosen.sum() == 7
    assert scores[chosen].min() > scores[~chosen].max()
    largest = np.asarray(choose_outliers(jnp.asarray(W), 7))
    assert np.abs(W)[largest].min() > np.abs(W)[~largest].max()


def test_the_quantizer_rounds_all_but_them():
    config = GridConfig(bits=3, group=8)
    flags = choose_outliers(jnp.asarray(W), 9)
    grid = fit(jnp.asarray(W), config, ~flags)
    rounding = quantizer_with_outliers(grid, flags)
    rounded = np.stack(
        [rounding(jnp.asarray(W[:, j]), jnp.int32(j)) for j in range(20)], 1
    )
    expected = np.where(
        flags, W.astype(np.float16), round_to_grid(jnp.asarray(W), grid)
    )
    np.testing.assert_array_equal(rounded, expected)
    # Without them the grid has less to cover.
    assert float(grid.scales.sum()) < float(fit(jnp.asarray(W), config).scales.sum())


def test_a_matrix_is_its_rest_and_its_outliers():
    flags = choose_outliers(jnp.asarray(W), 9)
    index, values, rest = take_outliers(jnp.asarray(W), flags, 9)
    assert index.dtype == jnp.int32 and (np.diff(index) > 0).all()
    np.testing.assert_array_equal(np.asarray(rest)[np.asarray(flags)], 0)
    whole = np.array(rest).reshape(-1)
    whole[np.asarray(index)] += np.asarray(values)
    np.testing.assert_array_equal(whole.reshape(W.shape), W)
