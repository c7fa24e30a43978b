import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparse_jax.models import cross_entropy


def naive(x, head, targets, weights):
    logits = jnp.einsum("btd,dv->btv", x, head).astype(jnp.float32)
    log_probabilities = jax.nn.log_softmax(logits)
    picked = jnp.take_along_axis(log_probabilities, targets[..., None], axis=-1)
    return -(picked[..., 0] * weights).sum()


def problem(batch=3, length=12, width=8, vocab=30, dtype=jnp.float32):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal((batch, length, width)), dtype)
    head = jnp.asarray(rng.standard_normal((width, vocab)), dtype)
    targets = jnp.asarray(rng.integers(0, vocab, (batch, length)), jnp.int32)
    weights = jnp.asarray(rng.random((batch, length)) * (rng.random(length) < 0.8))
    return x, head, targets, weights.astype(jnp.float32)


def value_and_grads(function, x, head, targets, weights):
    return jax.value_and_grad(
        lambda x, head: function(x, head, targets, weights), (0, 1)
    )(x, head)


@pytest.mark.parametrize("chunk", [1, 5, 9, 16, 10_000])
def test_chunks_equal_the_naive_loss(chunk):
    arrays = problem()
    loss, grads = value_and_grads(lambda *a: cross_entropy(*a, chunk), *arrays)
    expected, expected_grads = value_and_grads(naive, *arrays)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    for found, wanted in zip(grads, expected_grads, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


def test_a_length_without_divisors():
    arrays = problem(length=11)
    found = cross_entropy(*arrays, 6)
    np.testing.assert_allclose(found, naive(*arrays), rtol=1e-5)


def test_bfloat16_is_close_and_keeps_its_dtypes():
    arrays = problem(dtype=jnp.bfloat16)
    loss, grads = value_and_grads(lambda *a: cross_entropy(*a, 6), *arrays)
    x, head, *rest = arrays
    exact = (x.astype(jnp.float32), head.astype(jnp.float32), *rest)
    expected, expected_grads = value_and_grads(naive, *exact)
    assert loss.dtype == jnp.float32
    np.testing.assert_allclose(loss, expected, rtol=1e-3)
    for found, wanted in zip(grads, expected_grads, strict=True):
        assert found.dtype == jnp.bfloat16
        scale = float(jnp.abs(wanted).max())
        np.testing.assert_allclose(
            found.astype(jnp.float32), wanted, rtol=0, atol=2e-2 * scale
        )


def test_large_logits_do_not_overflow():
    x, head, targets, weights = problem()
    loss, grads = value_and_grads(cross_entropy, 1e4 * x, head, targets, weights)
    assert np.isfinite(loss) and all(np.isfinite(g).all() for g in grads)


def test_a_target_of_weight_zero_has_no_influence():
    x, head, targets, weights = problem()
    weights = weights.at[:, 3].set(0.0)
    grad = jax.grad(cross_entropy)(x, head, targets, weights)
    assert bool((grad[:, 3] == 0).all()) and bool((grad[:, 4] != 0).any())
    other = cross_entropy(x, head, targets.at[:, 3].set(0), weights)
    assert float(other) == float(cross_entropy(x, head, targets, weights))


def test_the_gradient_scales_with_its_cotangent():
    x, head, targets, weights = problem()
    grad = jax.grad(cross_entropy)(x, head, targets, weights)
    halved = jax.grad(lambda x: cross_entropy(x, head, targets, weights) / 2)(x)
    np.testing.assert_allclose(halved, grad / 2, rtol=1e-6)


def test_logits_of_the_whole_batch_never_exist():
    """Peak temporary memory of the compiled gradient, 64 pieces against one."""
    shapes = [(4, 256, 16), (16, 4096), (4, 256), (4, 256)]
    dtypes = [jnp.float32, jnp.float32, jnp.int32, jnp.float32]
    arguments = [
        jax.ShapeDtypeStruct(s, d) for s, d in zip(shapes, dtypes, strict=True)
    ]

    def temporary(chunk):
        step = jax.jit(jax.grad(lambda *a: cross_entropy(*a, chunk), (0, 1)))
        return step.lower(*arguments).compile().memory_analysis().temp_size_in_bytes

    logits = 4 * 256 * 4096 * 4
    assert temporary(1024) > logits
    assert temporary(16) < logits / 8
