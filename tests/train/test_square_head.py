"""SquareHead against its definition: scales, padding, prompts, precision."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparse_jax import models, train
from sparse_jax.train.distill import square_head
from sparse_jax.tree import from_paths, leaf_paths
from sparse_jax.types import Batch
from tests.train.helpers import MODEL, OPTIMIZER

CONFIG = train.DistillConfig(
    ce_weight=0.7, kl_weight=0.4, temperature=1.5, feature_weight=2.0
)
LOSS = train.Distill(model=MODEL, config=CONFIG, isolate_documents=True)
RESPONSE = dataclasses.replace(
    LOSS, config=dataclasses.replace(CONFIG, feature_tokens="response")
)
ALONE = dataclasses.replace(CONFIG, ce_weight=0.0, kl_weight=0.0)
LENGTHS, PROMPTS = (16, 11, 7, 4), (3, 5, 2, 1)


def examples(rows: int = 4, length: int = 16, rubbish: int = 0) -> Batch:
    """Conversations of several lengths, padded; a seed changes what lies in padding."""
    place = np.arange(length)
    real = place < np.array([*LENGTHS, *[0] * (rows - 4)])[:, None]
    response = real & (place >= np.array([*PROMPTS, *[0] * (rows - 4)])[:, None])
    tokens = np.zeros((rows, length + 1), np.int32)
    tokens[:4, :17] = np.random.default_rng(0).integers(0, 64, (4, 17))
    filling = np.random.default_rng(rubbish).integers(0, 64, tokens.shape)
    outside = ~np.pad(real, ((0, 0), (1, 0)), constant_values=True)
    tokens = np.where(outside, filling, tokens).astype(np.int32)
    return Batch(
        tokens=jnp.asarray(tokens[:, :-1]),
        targets=jnp.asarray(tokens[:, 1:]),
        loss_weights=jnp.asarray(response, jnp.float32),
        segment_ids=jnp.asarray(np.where(real, 0, -1), jnp.int32),
        positions=jnp.asarray(np.where(real, place, 0), jnp.int32),
    )


@pytest.fixture(scope="module")
def teacher():
    return models.init(jax.random.key(5), MODEL)


@functools.partial(jax.jit, static_argnames="loss")
def values_and_gradients(loss, params, batch, teacher):
    """Of the mean that a training step takes, and of all parts."""

    def mean(params):
        found = loss(params, batch, teacher)
        return found.total / found.weight, found

    (value, found), grads = jax.value_and_grad(mean, has_aux=True)(params)
    parts = {name: part / found.weight for name, part in found.parts.items()}
    return {"total": value, **parts}, grads


def assert_close(found, expected, rtol):
    """Every leaf, relative to the largest entry of the expected one."""

    def close(a, b):
        np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol * float(jnp.abs(b).max()))

    jax.tree.map(close, found, expected)


def test_it_is_its_definition(params, teacher):
    """With the blocks walked one after the other, and only real tokens taken."""
    batch = examples()

    def outputs(params, counted):
        x = models.embed(params, batch.tokens)
        for layer in range(MODEL.n_layers):
            weights = jax.tree.map(lambda w, i=layer: w[i], params["layers"])
            x, _ = models.block(
                weights,
                x,
                MODEL,
                positions=batch.positions,
                segment_ids=batch.segment_ids,
            )
            yield jnp.where(counted[..., None], x, 0.0)

    @jax.jit
    @jax.value_and_grad
    def definition(params, counted):
        pairs = zip(outputs(params, counted), outputs(teacher, counted), strict=True)
        return 2.0 * sum(jnp.sum((s - t) ** 2) / jnp.sum(t**2) for s, t in pairs)

    expected, expected_grads = definition(params, batch.segment_ids >= 0)
    alone = dataclasses.replace(LOSS, config=ALONE)
    found, grads = values_and_gradients(alone, params, batch, teacher)
    np.testing.assert_allclose(found["total"], expected, rtol=1e-5)
    np.testing.assert_allclose(found["features"], expected / 2, rtol=1e-5)
    assert_close(grads, expected_grads, rtol=1e-4)
    expected, _ = definition(params, batch.loss_weights > 0)
    found, _ = values_and_gradients(RESPONSE, params, batch, teacher)
    np.testing.assert_allclose(found["features"], expected / 2, rtol=1e-5)


@pytest.mark.parametrize("size", [1e-30, 1e-20, 1e-3, 1e3, 1e20, 1e30])
def test_features_of_any_size_count_alike(size):
    """Squares of 1e20 are no float32, those of 1e-30 are zero."""
    rng = np.random.default_rng(0)
    s, t = (jnp.asarray(rng.normal(size=(3, 2, 8, 16)), jnp.float32) for _ in range(2))
    counted = jnp.asarray(rng.random((2, 8)) < 0.7)
    sizes_L = jnp.array([1.0, size, 1.0])[:, None, None, None]

    def scaled(s):
        return square_head(sizes_L * s, sizes_L * t, counted)

    value, grad = jax.value_and_grad(square_head)(s, t, counted)
    found, found_grad = jax.value_and_grad(scaled)(s)
    np.testing.assert_allclose(found, value, rtol=1e-6)
    assert_close(found_grad, grad, rtol=1e-5)
    assert not np.asarray(found_grad)[:, ~np.asarray(counted)].any()


def test_models_with_features_of_any_size_count_alike(params, teacher):
    """A model whose residual stream is `size` times as large computes the same."""
    model = dataclasses.replace(MODEL, norm_eps=1e-20)
    loss = train.Distill(model=model, config=ALONE, isolate_documents=True)
    writers = (".*/embedding", ".*/o/kernel", ".*/down/kernel")  # to that stream

    def grown(params, size):
        return from_paths(
            {
                path: size * leaf if re.fullmatch("|".join(writers), path) else leaf
                for path, leaf in leaf_paths(params).items()
            }
        )

    @jax.jit
    @jax.value_and_grad
    def total(params, size):
        found = loss(grown(params, size), examples(), grown(teacher, size))
        return found.total / found.weight

    expected, expected_grads = total(params, 1.0)
    for size in (1e-3, 1e3):
        found, grads = total(params, size)
        np.testing.assert_allclose(found, expected, rtol=1e-5)
        assert_close(grads, expected_grads, rtol=1e-5)


@pytest.mark.parametrize("tokens", ["all", "response"])
def test_padding_changes_no_term(params, teacher, tokens):
    loss = LOSS if tokens == "all" else RESPONSE
    found, grads = values_and_gradients(loss, params, examples(), teacher)
    for batch in (examples(rubbish=3), examples(rows=6, length=24, rubbish=3)):
        padded, padded_grads = values_and_gradients(loss, params, batch, teacher)
        assert found.keys() == padded.keys()
        for name, value in found.items():
            np.testing.assert_allclose(padded[name], value, rtol=1e-5, err_msg=name)
        assert_close(padded_grads, grads, rtol=1e-5)


def test_prompts_count_in_features_by_option_and_never_in_cross_entropy(
    params, teacher
):
    """What a prompt's last token is to be followed by is the response's first."""
    batch = examples()
    targets = jnp.where(batch.loss_weights > 0, batch.targets, 0)
    other = batch._replace(targets=targets)
    for loss in (LOSS, RESPONSE):
        found, _ = values_and_gradients(loss, params, batch, teacher)
        assert found == values_and_gradients(loss, params, other, teacher)[0]
    every, _ = values_and_gradients(LOSS, params, batch, teacher)
    assert abs(float(every["features"] / found["features"]) - 1) > 1e-3
    for name in ("cross_entropy", "divergence"):
        np.testing.assert_allclose(every[name], found[name], rtol=1e-6)


def test_nothing_counted_is_zero_and_rubbish_outside_is_not_seen():
    t = jnp.full((1, 1, 2, 4), 2.0)
    assert float(square_head(3 * t, t, jnp.zeros((1, 2), bool))) == 0.0
    s = 1.5 * t.at[:, :, 1].set(jnp.nan)
    one = jnp.array([[True, False]])
    value, grad = jax.value_and_grad(square_head)(s, s / 1.5, one)
    assert float(value) == 0.25
    assert bool(jnp.isfinite(grad).all())


def test_half_precision_features_are_compared_in_full(params, teacher):
    """Differences of bfloat16 numbers are not rounded to bfloat16 again."""
    rng = np.random.default_rng(0)
    s, t = (jnp.asarray(rng.normal(size=(2, 4, 64, 32)), jnp.bfloat16) for _ in "st")
    counted = jnp.ones((4, 64), bool)
    wide = [np.asarray(x, np.float64) for x in (s, t)]
    expected = sum(
        ((a - b) ** 2).sum() / (b**2).sum() for a, b in zip(*wide, strict=True)
    )
    np.testing.assert_allclose(square_head(s, t, counted), expected, rtol=1e-6)
    compute = models.Compute(dtype="bfloat16")
    half = dataclasses.replace(LOSS, compute=compute)
    found, _ = values_and_gradients(half, params, examples(), teacher)
    full, _ = values_and_gradients(LOSS, params, examples(), teacher)
    np.testing.assert_allclose(found["features"], full["features"], rtol=2e-2)


@pytest.mark.slow
def test_micro_batches_take_the_mean_of_their_own_ratios(params, masks, teacher):
    batch = examples()
    state = train.init_state(params, masks, OPTIMIZER, rng=jax.random.key(0))
    effective = jax.tree.map(jnp.copy, state.params)
    _, metrics = train.train_step(
        state, batch, 0.0, teacher, loss=LOSS, optimizer=OPTIMIZER, accumulate=2
    )
    rows = [jax.tree.map(lambda x, i=i: x[i::2], batch) for i in range(2)]
    ratios = [LOSS(effective, row, teacher) for row in rows]
    expected = sum(r.parts["features"] for r in ratios) / sum(r.weight for r in ratios)
    np.testing.assert_allclose(metrics["features"], expected, rtol=1e-5)


def test_a_model_has_no_distance_from_itself(params):
    found, grads = values_and_gradients(
        dataclasses.replace(LOSS, config=ALONE), params, examples(), params
    )
    assert found["features"] == 0.0
    assert not any(bool(g.any()) for g in jax.tree.leaves(grads))
