"""Attention where rows end in padding, segment -1, and one row is nothing else."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparse_jax.kernels.attention import causal_attention
from sparse_jax.kernels.attention.splash import causal_by_splash

IMPLEMENTATIONS = {
    "scores": causal_attention,
    "blockwise": functools.partial(causal_attention, implementation="blockwise"),
    "splash": functools.partial(causal_by_splash, interpret=True),
}
LENGTH, ENDS = 256, (100, 256, 0)
"""Tokens of a row, and how many of them are real."""


@pytest.fixture(scope="module")
def arrays():
    keys = jax.random.split(jax.random.key(0), 4)
    q, k, v, weights = (
        jax.random.normal(key, (len(ENDS), LENGTH, 2, 64), jnp.float32) for key in keys
    )
    place = jnp.arange(LENGTH)
    real = place < jnp.asarray(ENDS)[:, None]
    # Two examples in a row, then padding.
    return (q, k, v), weights, jnp.where(real, place // 60, -1)


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
def test_real_tokens_do_not_see_padding(arrays, name):
    inputs, weights, ids = arrays
    real = ids[..., None, None] >= 0

    @functools.partial(jax.jit, static_argnums=0)
    def outputs_and_gradients(function, inputs):
        def total(inputs):
            out = function(*inputs, ids)
            return jnp.sum(jnp.where(real, out * weights, 0.0)), out

        return jax.grad(total, has_aux=True)(inputs)

    grads, out = outputs_and_gradients(IMPLEMENTATIONS[name], inputs)
    # What stands in padding is of no consequence, however large.
    other = tuple(jnp.where(real, x, 100.0) for x in inputs)
    others_grads, others = outputs_and_gradients(IMPLEMENTATIONS[name], other)
    for found in (*grads, out, *others_grads, others):
        assert bool(jnp.isfinite(found).all())
    for found in (*grads, *others_grads):
        assert not np.asarray(jnp.where(real, 0.0, found)).any()
    np.testing.assert_array_equal(
        jnp.where(real, out, 0.0), jnp.where(real, others, 0.0)
    )
    # And a row is what it would be without it.
    alone = causal_attention(*(x[:1, : ENDS[0]] for x in inputs), ids[:1, : ENDS[0]])
    np.testing.assert_allclose(out[:1, : ENDS[0]], alone, rtol=1e-4, atol=1e-5)
