"""The one place where masks touch a weight: its two modes differ in the gradient."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import pytest

from sparse_jax.ops import effective_weight
from sparse_jax.quant import Grid, GridConfig, fake_quantize

W = jnp.array([[1.3, -2.6], [3.2, 4.9]])
MASK = jnp.array([[True, False], [False, True]])
UP = jnp.array([[5.0, 6.0], [7.0, 8.0]])  # dL / dw_eff


def grad(**options):
    return jax.grad(lambda w: (UP * effective_weight(w, MASK, **options)).sum())(W)


@pytest.mark.parametrize("mode", ["fixed", "straight_through"])
def test_pruned_weights_are_exactly_zero(mode):
    found = effective_weight(W, MASK, mode=mode)
    assert found.tolist() == jnp.where(MASK, W, 0).tolist()


def test_fixed_masks_the_gradient():
    assert grad(mode="fixed").tolist() == [[5, 0], [0, 8]]


def test_straight_through_passes_the_dense_gradient():
    assert grad(mode="straight_through").tolist() == UP.tolist()


@pytest.mark.parametrize("bad", [jnp.inf, jnp.nan])
def test_fixed_lets_nothing_of_a_pruned_weight_through(bad):
    found = effective_weight(W.at[0, 1].set(bad), MASK)
    assert float(found[0, 1]) == 0.0


GRID = Grid(config=GridConfig(bits=3, group=0), scales=jnp.array([[1.0, 1.0]]))


@pytest.mark.parametrize(
    ("mode", "expected"),
    [("fixed", [[5, 0], [0, 0]]), ("straight_through", [[5, 6], [7, 0]])],
)
def test_fake_quantisation_brings_its_own_gradient(mode, expected):
    """4.9 is outside of the grid, whose last code is 3: no gradient."""
    quantized = functools.partial(fake_quantize, grid=GRID)
    found = effective_weight(W, MASK, mode=mode, fake_quant=quantized)
    assert found.tolist() == [[1, 0], [0, 3]]
    assert grad(fake_quant=quantized, mode=mode).tolist() == expected


def test_scales_learn_through_the_mask():
    """dw'/dscale = code - w inside of the grid, code outside, 0 where pruned."""

    def loss(scales):
        grid = dataclasses.replace(GRID, scales=scales)
        quantized = functools.partial(fake_quantize, grid=grid)
        return (UP * effective_weight(W, MASK, fake_quant=quantized)).sum()

    found = jax.grad(loss)(GRID.scales)
    assert found.tolist() == [[pytest.approx(5 * -0.3), pytest.approx(8 * 3)]]


@pytest.mark.parametrize("mode", ["fixed", "straight_through"])
def test_no_rounding_fills_a_zero(mode):
    found = effective_weight(W, MASK, mode=mode, fake_quant=lambda w: w + 7)
    assert not found[~MASK].any()


def test_without_a_mask_the_weight_is_dense():
    assert effective_weight(W, None) is W
    assert effective_weight(W[0], None) is not None  # biases and norms too
