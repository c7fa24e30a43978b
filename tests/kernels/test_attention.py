"""Every implementation of causal attention against its definition."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.cudnn import fused_attention_stablehlo

from sparse_jax import ops
from sparse_jax.kernels import attention
from sparse_jax.kernels.attention import blockwise, causal_attention
from sparse_jax.kernels.attention.splash import causal_by_splash
from sparse_jax.types import InputError

BLOCKWISE = functools.partial(causal_attention, implementation="blockwise")
SPLASH = functools.partial(causal_by_splash, interpret=True)


def arrays(batch=2, length=256, heads=4, kv_heads=2, width=16, dtype=jnp.float32):
    keys = jax.random.split(jax.random.key(0), 4)
    shapes = [(batch, length, n, width) for n in (heads, kv_heads, kv_heads, heads)]
    q, k, v, weights = (
        jax.random.normal(key, shape, dtype)
        for key, shape in zip(keys, shapes, strict=True)
    )
    return (q, k, v), weights


def documents(batch, length):
    """Rows of several documents of different lengths."""
    edges = jnp.asarray([length // 8, length // 2, length - 3])
    ids_T = jnp.searchsorted(edges, jnp.arange(length), side="right")
    return jnp.stack([ids_T, ids_T[::-1]][:batch])


@pytest.mark.parametrize("split", [False, True], ids=["one", "documents"])
@pytest.mark.parametrize(
    ("implementation", "shape"),
    [
        (BLOCKWISE, {}),
        (BLOCKWISE, {"length": 2 * blockwise.BLOCK + 2}),  # two blocks and a bit: 514
        (BLOCKWISE, {"length": 7, "kv_heads": 1}),
        (SPLASH, {"width": 128, "length": 128}),
        (SPLASH, {"width": 64, "heads": 2, "kv_heads": 2}),
    ],
)
def test_outputs_and_gradients_are_those_of_the_definition(
    implementation, shape, split
):
    inputs, weights = arrays(**shape)
    ids = documents(*inputs[0].shape[:2]) if split else None

    def total(function):
        def weighted(q, k, v):
            return jnp.sum(function(q, k, v, ids) * weights)

        return jax.jit(jax.value_and_grad(weighted, argnums=(0, 1, 2)))

    found, found_grads = total(implementation)(*inputs)
    value, grads = total(causal_attention)(*inputs)
    np.testing.assert_allclose(found, value, rtol=1e-5)
    for got, expected in zip(found_grads, grads, strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


def test_the_definition_is_the_masked_softmax():
    inputs, _ = arrays(length=8)
    ids = documents(2, 8)
    mask = np.tril(np.ones((8, 8), bool)) & (
        np.asarray(ids)[:, :, None] == np.asarray(ids)[:, None, :]
    )
    expected = ops.attention(*inputs, jnp.asarray(mask)[:, None])
    np.testing.assert_array_equal(ops.attention(*inputs, ops.Causal(ids)), expected)


def largest_intermediate(implementation, length):
    """Numbers in the largest array of a forward and backward pass."""
    inputs, weights = arrays(batch=1, length=length, width=8)

    def loss(q, k, v):
        found = causal_attention(q, k, v, implementation=implementation)
        return jnp.sum(found * weights)

    text = jax.jit(jax.grad(loss, argnums=(0, 1, 2))).lower(*inputs).as_text()
    shapes = [
        [int(n) for n in part.split("x")[:-1]]
        for part in text.replace("tensor<", "\n").split("\n")
        for part in [part.split(">")[0]]
        if "x" in part and part.split("x")[0].isdigit()
    ]
    return max(int(np.prod(shape)) for shape in shapes)


def test_blocks_never_hold_all_scores():
    heads, length = 4, 2048
    assert largest_intermediate("scores", length) >= heads * length**2
    assert largest_intermediate("blockwise", length) <= (
        heads * length * blockwise.BLOCK
    )


def test_splash_lowers_for_tpu():
    inputs, _ = arrays(length=512, width=128, dtype=jnp.bfloat16)
    attend = functools.partial(causal_attention, implementation="splash")
    gradient = jax.grad(lambda *x: jnp.sum(attend(*x).astype(jnp.float32)))
    lowered = jax.jit(gradient).trace(*inputs).lower(lowering_platforms=("tpu",))
    assert "tpu_custom_call" in lowered.as_text()


def test_cudnn_lowers_for_nvidia(monkeypatch):
    # Its presence is asked for when lowering; the call itself is the same without.
    monkeypatch.setattr(fused_attention_stablehlo, "check_cudnn_version", lambda: 91000)
    inputs, _ = arrays(width=64, dtype=jnp.bfloat16)
    attend = functools.partial(causal_attention, implementation="cudnn")
    lowered = jax.jit(attend).trace(*inputs).lower(lowering_platforms=("cuda",))
    assert "fmha" in lowered.as_text()


@pytest.mark.parametrize(
    ("implementation", "shape", "message"),
    [
        ("flash", {}, "must be auto or one of .*'splash'.*found 'flash'"),
        ("splash", {"length": 100}, "multiple of 128 tokens, found 100"),
        ("cudnn", {}, "needs bfloat16 or float16 .* found float32"),
    ],
)
def test_what_an_implementation_cannot_do_is_refused(implementation, shape, message):
    inputs, _ = arrays(**shape)
    with pytest.raises(InputError, match=message):
        causal_attention(*inputs, implementation=implementation)


def test_cudnn_keeps_no_documents_apart():
    inputs, _ = arrays(dtype=jnp.bfloat16)
    with pytest.raises(InputError, match="and isolated documents; use 'blockwise'"):
        causal_attention(*inputs, documents(2, 256), implementation="cudnn")


@pytest.mark.parametrize(
    ("platform", "dtype", "length", "split", "name"),
    [
        ("cpu", "float32", 4096, False, "scores"),
        ("tpu", "bfloat16", 4096, True, "splash"),
        ("tpu", "bfloat16", 100, False, "blockwise"),
        ("gpu", "bfloat16", 4096, False, "cudnn"),
        ("gpu", "bfloat16", 4096, True, "blockwise"),
        ("gpu", "float32", 4096, False, "blockwise"),
    ],
)
def test_what_auto_stands_for(platform, dtype, length, split, name):
    found = attention.choose(platform, jnp.dtype(dtype), length, documents=split)
    assert found == name
