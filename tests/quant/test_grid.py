"""Grids against a loop in NumPy: layouts, ragged groups, gradients."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from sparse_jax.quant import (
    Grid,
    GridConfig,
    fake_quantize,
    fit,
    from_codes,
    quantizer,
    round_to_grid,
    search,
    storage_bits,
    to_codes,
)
from sparse_jax.solvers import solve
from sparse_jax.sparsity import Unstructured
from sparse_jax.types import InputError

CONFIGS = [
    GridConfig(bits=bits, group=group, symmetric=symmetric)
    for bits, group, symmetric in itertools.product((2, 3, 4, 8), (0, 8), (True, False))
]


def matrix(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def loop(w_OI, config):
    """`fit` and `round_to_grid`, one weight after the other."""
    n_out, n_in = w_OI.shape
    width = config.group or n_in
    scales, zeros = (np.zeros((n_out, -(-n_in // width)), np.float32) for _ in "sz")
    rounded = np.zeros_like(w_OI)
    low, high = config.limits
    dtype = np.float32 if config.bits == 8 and not config.group else ml_dtypes.bfloat16
    for o, start in itertools.product(range(n_out), range(0, n_in, width)):
        part = w_OI[o, start : start + width]
        most, least = max(part.max(), 0), min(part.min(), 0)
        span = max(most, -least) if config.symmetric else most - least
        scale = np.float32(dtype(np.float32(span / high)))
        zero = 0.0
        if not config.symmetric:
            zero = np.clip(np.rint(-least / scale), low, high)
        scales[o, start // width], zeros[o, start // width] = scale, zero
        for i, w in enumerate(part, start):
            code = np.clip(np.rint(w / scale) + zero, low, high)
            rounded[o, i] = scale * (code - zero)
    return scales, zeros, rounded


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_fit_and_rounding_are_the_loop(config):
    w_OI = matrix(3, 20)  # of a ragged last group
    scales, zeros, rounded = loop(w_OI, config)
    grid = fit(jnp.asarray(w_OI), config)
    # XLA divides by a constant with another last bit.
    np.testing.assert_allclose(grid.scales, scales, rtol=2e-7)
    if not config.symmetric:
        np.testing.assert_array_equal(grid.zeros, zeros)
    np.testing.assert_allclose(
        round_to_grid(jnp.asarray(w_OI), grid), rounded, rtol=1e-6
    )


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_layouts_and_leading_axes_agree(config):
    w_LOI = jnp.asarray(matrix(2, 3, 20))
    across, down = fit(w_LOI, config), fit(w_LOI.swapaxes(1, 2), config, axis=-2)
    np.testing.assert_array_equal(across.scales, down.scales.swapaxes(1, 2))
    np.testing.assert_array_equal(
        round_to_grid(w_LOI, across),
        round_to_grid(w_LOI.swapaxes(1, 2), down, axis=-2).swapaxes(1, 2),
    )
    alone = fit(w_LOI[1], config)
    np.testing.assert_array_equal(across.scales[1], alone.scales)


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_codes_fit_their_bits_and_come_back(config):
    w_OI = jnp.asarray(matrix(4, 24))
    grid = fit(w_OI, config)
    codes = to_codes(w_OI, grid)
    bound = 2 ** (config.bits - 1)
    assert codes.dtype == jnp.int8
    assert -bound <= int(codes.min()) and int(codes.max()) < bound
    np.testing.assert_array_equal(from_codes(codes, grid), round_to_grid(w_OI, grid))
    again = round_to_grid(from_codes(codes, grid), grid)
    np.testing.assert_array_equal(again, from_codes(codes, grid))


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_pruned_weights_stay_exactly_zero(config):
    mask = jnp.asarray(matrix(4, 24, seed=1)) > 0.3
    mask = mask.at[0, :8].set(False)  # a group of which nothing is kept
    w_OI = jnp.where(mask, jnp.asarray(matrix(4, 24)), 0)
    for grid in (fit(w_OI, config, mask), search(w_OI, config, mask)):
        rounded = round_to_grid(w_OI, grid)
        assert not rounded[~mask].any() and jnp.isfinite(rounded).all()


def test_search_never_loses_to_the_range_and_counts_importance():
    w_OI = jnp.asarray(matrix(8, 32))
    importance = jnp.asarray(matrix(32, seed=2)) ** 2 + 0.1
    config = GridConfig(bits=3, group=16)

    def loss(grid, weight):
        return jnp.sum(weight * (round_to_grid(w_OI, grid) - w_OI) ** 2)

    assert loss(search(w_OI, config), 1.0) < loss(fit(w_OI, config), 1.0)
    weighted = search(w_OI, config, None, importance)
    assert loss(weighted, importance) < loss(search(w_OI, config), importance)
    stacked = search(
        jnp.stack([w_OI, w_OI]), config, None, jnp.stack([importance, importance])
    )
    np.testing.assert_array_equal(stacked.scales[1], weighted.scales)


def test_fake_quantisation_is_rounding_with_gradients():
    config = GridConfig(bits=4, group=0, symmetric=False)
    grid = Grid(config=config, scales=jnp.array([[0.5]]), zeros=jnp.array([[7.3]]))
    w_IO = jnp.array([[0.3], [-0.6], [9.0], [-9.0]])
    stored = dataclasses.replace(grid, zeros=jnp.array([[7.0]]))
    np.testing.assert_array_equal(
        fake_quantize(w_IO, grid), round_to_grid(w_IO, stored, axis=-2)
    )
    slopes = jax.jacobian(lambda w, g: fake_quantize(w, g)[:, 0], argnums=(0, 1))(
        w_IO, grid
    )
    np.testing.assert_array_equal(np.diag(slopes[0][..., 0]), [1, 1, 0, 0])
    inside = np.rint([0.6, -1.2]) - [0.6, -1.2]
    expected = [*inside, 15 - 7, 0 - 7]
    np.testing.assert_allclose(slopes[1].scales[:, 0, 0], expected, rtol=1e-6)
    np.testing.assert_allclose(slopes[1].zeros[:, 0, 0], [0, 0, -0.5, -0.5])


def test_scales_train_as_they_are_stored():
    config = GridConfig(bits=4, group=0)
    grid = Grid(config=config, scales=jnp.array([[0.123456]]))
    value = fake_quantize(jnp.array([[0.5]]), grid)
    scale = np.float32(ml_dtypes.bfloat16(0.123456))
    assert value[0, 0] == np.rint(0.5 / scale) * scale


@pytest.mark.parametrize(
    "config", [GridConfig(bits=4, group=8), GridConfig(bits=8, group=0)]
)
def test_a_solver_rounds_by_columns_to_the_grid(config):
    w_OI, x = jnp.asarray(matrix(6, 20)), matrix(50, 20, seed=3)
    grid = fit(w_OI, config)
    found = solve(
        "sparsegpt",
        w_OI,
        jnp.asarray(x.T @ x),
        Unstructured(0.5),
        quantizer=quantizer(grid),
    )
    np.testing.assert_allclose(
        round_to_grid(found.weights, grid), found.weights, rtol=1e-6
    )
    assert int((~found.mask).sum()) == 60 and not found.weights[~found.mask].any()


@pytest.mark.parametrize(
    ("config", "n_in", "density", "bits"),
    [
        (GridConfig(bits=4, group=128), 256, 1.0, 4 + 16 / 128),
        (GridConfig(bits=4, group=128), 200, 1.0, 4 + 2 * 16 / 200),
        (GridConfig(bits=2, group=64, symmetric=False), 64, 1.0, 2 + 18 / 64),
        (GridConfig(bits=8, group=0), 64, 0.5, 4 + 32 / 64),
    ],
)
def test_storage_counts_everything(config, n_in, density, bits):
    assert storage_bits(config, n_in, density) == pytest.approx(bits)


def test_what_is_no_grid_is_refused():
    with pytest.raises(InputError, match=r"grid.bits must be one of .*found 5"):
        GridConfig(bits=5)
    with pytest.raises(InputError, match=r"grid.group must be a number of inputs"):
        GridConfig(group=-1)
