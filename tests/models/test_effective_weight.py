"""The one place where masks touch a weight: its two modes differ in the gradient."""

import jax
import jax.numpy as jnp
import pytest

from sparse_jax.ops import effective_weight

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


def test_fake_quantisation_is_passed_straight_through():
    found = effective_weight(W, MASK, fake_quant=jnp.round)
    assert found.tolist() == [[1, 0], [0, 5]]
    assert grad(fake_quant=jnp.round).tolist() == [[5, 0], [0, 8]]
    both = grad(fake_quant=jnp.round, mode="straight_through")
    assert both.tolist() == UP.tolist()


def test_without_a_mask_the_weight_is_dense():
    assert effective_weight(W, None) is W
    assert effective_weight(W[0], None) is not None  # biases and norms too
