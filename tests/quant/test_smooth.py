import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparse_jax.quant import (
    GridConfig,
    awq_scales,
    fit,
    round_to_grid,
    smooth_scales,
)

RNG = np.random.default_rng(0)


def test_alpha_says_which_side_keeps_its_range():
    x, w = jnp.array([8.0, 1.0, 2.0]), jnp.array([1.0, 2.0, 4.0])
    np.testing.assert_allclose(smooth_scales(x, w, 1.0), x)  # inputs become 1
    np.testing.assert_allclose(smooth_scales(x, w, 0.0), 1 / w)  # weights become 1
    half = smooth_scales(x, w, 0.5)
    np.testing.assert_allclose(x / half, w * half, rtol=1e-6)  # both the same


@pytest.mark.parametrize("alpha", [0.0, 0.5, 0.8, 1.0])
def test_dead_inputs_and_dead_weights_are_floored(alpha):
    x = jnp.array([0.0, 1.0, 1e-9, 2.0])
    scales = smooth_scales(x, jnp.array([1.0, 0.0, 1.0, 2.0]), alpha)
    assert np.isfinite(scales).all() and (scales > 0).all()
    assert float(scales.max() / scales.min()) <= 1.001e4
    assert scales[0] == scales[2]  # as the one that is almost dead
    nothing = smooth_scales(jnp.zeros(3), jnp.zeros(3), alpha)
    np.testing.assert_array_equal(nothing, 1)


def awq_problem(large=30.0):
    """Inputs of which a few are much larger, and their Hessian."""
    x = RNG.normal(size=(200, 32)).astype(np.float32)
    x[:, :3] *= large
    w = RNG.normal(size=(24, 32)).astype(np.float32)
    return jnp.asarray(x), jnp.asarray(w), jnp.asarray(2 * x.T @ x / len(x))


def output_error(x, w, rounded):
    return float(jnp.mean(((rounded - w) @ x.T) ** 2))


def test_awq_is_the_best_power_by_the_error_of_the_outputs():
    x, w, hessian = awq_problem()
    config = GridConfig(bits=3, group=0)
    mean = jnp.mean(jnp.abs(x), 0)
    chosen = awq_scales([w], [None], mean, hessian, config, points=11)
    errors = {}
    for exponent in np.linspace(0, 1, 11):
        scales = mean**exponent
        scales /= jnp.sqrt(scales.max() * scales.min())
        scaled = w * scales
        rounded = round_to_grid(scaled, fit(scaled, config)) / scales
        errors[exponent] = output_error(x, w, rounded)
        if np.allclose(chosen, scales, rtol=1e-4):
            found = exponent
    assert found == min(errors, key=errors.get) > 0
    assert errors[found] < 0.8 * errors[0]  # of no scales


def test_awq_counts_only_what_is_kept_and_all_that_read_the_input():
    x, w, hessian = awq_problem()
    config = GridConfig(bits=3, group=16)
    mean = jnp.mean(jnp.abs(x), 0)
    mask = jnp.asarray(RNG.random(w.shape) < 0.5)
    masked = awq_scales([jnp.where(mask, w, 0)], [mask], mean, hessian, config)
    garbage = awq_scales([jnp.where(mask, w, 9.0)], [mask], mean, hessian, config)
    np.testing.assert_array_equal(masked, garbage)
    one = awq_scales([w], [None], mean, hessian, config)
    two = awq_scales([w, w], [None, None], mean, hessian, config)
    np.testing.assert_array_equal(one, two)
    assert jax.tree.leaves(one)[0].shape == (32,)
