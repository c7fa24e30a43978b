import math

import jax.numpy as jnp
import numpy as np
import pytest

from sparse_jax import ops
from sparse_jax.models import RopeConfig, layers


def test_rms_norm_is_its_formula():
    x = np.random.default_rng(0).standard_normal((3, 8)).astype(np.float32)
    scale = np.arange(8, dtype=np.float32)
    expected = x / np.sqrt((x**2).mean(-1, keepdims=True) + 0.5) * scale
    found = layers.rms_norm(jnp.asarray(x), jnp.asarray(scale), 0.5)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_rms_norm_of_bfloat16_is_computed_in_float32():
    x = jnp.full((4096,), 1.0078125, jnp.bfloat16)  # its square is no bfloat16
    found = layers.rms_norm(x, jnp.ones(4096), 0.0)
    assert found.dtype == jnp.bfloat16 and bool((found == 1).all())


def test_rope_keeps_lengths_and_depends_on_distance_alone():
    rng = np.random.default_rng(0)
    q, k = (jnp.asarray(rng.standard_normal((1, 1, 1, 8)), jnp.float32) for _ in "qk")
    frequency = layers.rope_frequencies(RopeConfig(theta=50.0), 8, 64, 1)

    def score(i, j):
        rotated = [
            layers.apply_rope(x, *layers.rope_tables(jnp.array([[p]]), frequency))
            for x, p in ((q, i), (k, j))
        ]
        np.testing.assert_allclose(
            jnp.linalg.norm(rotated[0]), jnp.linalg.norm(q), rtol=1e-5
        )
        return float((rotated[0] * rotated[1]).sum())

    assert score(3, 1) == pytest.approx(score(23, 21), abs=1e-4)
    assert abs(score(3, 1) - score(3, 2)) > 1e-2


def test_llama3_frequencies_meet_their_three_bands():
    rope = RopeConfig(
        kind="llama3", theta=10_000.0, factor=8.0, original_max_seq_len=256
    )
    plain = np.asarray(layers.rope_frequencies(RopeConfig(), 32, 256, 8))
    found = np.asarray(layers.rope_frequencies(rope, 32, 256, 8))
    wavelength = 2 * math.pi / plain
    short, long = wavelength < 256 / 4, wavelength > 256
    np.testing.assert_allclose(found[short], plain[short], rtol=1e-6)
    np.testing.assert_allclose(found[long], plain[long] / 8, rtol=1e-6)
    middle = ~short & ~long
    assert short.any() and long.any() and middle.any()
    assert ((found < plain) & (found > plain / 8))[middle].all()


def test_dynamic_frequencies_change_beyond_the_trained_length():
    rope = RopeConfig(kind="dynamic", factor=2.0)
    plain = layers.rope_frequencies(RopeConfig(), 8, 16, 16)
    assert jnp.array_equal(layers.rope_frequencies(rope, 8, 16, 16), plain)
    longer = layers.rope_frequencies(rope, 8, 16, 17)
    assert float(longer[0]) == 1.0 and bool((longer[1:] < plain[1:]).all())


def test_attention_is_its_formula_with_shared_key_heads():
    rng = np.random.default_rng(0)
    q = rng.standard_normal((2, 5, 4, 6)).astype(np.float32)
    k, v = (rng.standard_normal((2, 5, 2, 6)).astype(np.float32) for _ in "kv")
    mask = np.tril(np.ones((5, 5), bool))
    expected = np.zeros_like(q)
    for head in range(4):
        shared = head // 2
        scores = np.einsum("bth,bsh->bts", q[:, :, head], k[:, :, shared]) / 6**0.5
        scores = np.where(mask, scores, -np.inf)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        expected[:, :, head] = np.einsum("bts,bsh->bth", weights, v[:, :, shared])
    arrays = (jnp.asarray(a) for a in (q, k, v, mask[None, None]))
    np.testing.assert_allclose(ops.attention(*arrays), expected, rtol=2e-5, atol=1e-6)


def test_a_query_that_sees_no_key_is_finite():
    x = jnp.ones((1, 2, 1, 4))
    mask = jnp.zeros((1, 1, 2, 2), bool)
    assert bool(jnp.isfinite(ops.attention(x, x, x, mask)).all())
