"""Distillation against autodiff of the whole logits."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparse_jax import models, train
from sparse_jax.types import InputError
from tests.train.helpers import MODEL, OPTIMIZER, make_batch

CONFIG = train.DistillConfig(ce_weight=0.7, kl_weight=0.4, temperature=1.5)
LOSS = train.Distill(model=MODEL, config=CONFIG)
SMALLER = dataclasses.replace(MODEL, d_model=16, n_heads=2, n_layers=1)


def with_config(**fields):
    return dataclasses.replace(LOSS, config=dataclasses.replace(CONFIG, **fields))


def batch_with_weights():
    batch = make_batch(0)
    weights = np.random.default_rng(1).random(batch.tokens.shape).astype(np.float32)
    return jax.tree.map(jnp.asarray, batch._replace(loss_weights=weights))


def naive(params, batch, teacher, loss):
    """The definition, with the logits of all tokens."""
    tokens = jnp.asarray(batch.tokens)
    student = models.forward(params, tokens, loss.model)
    other = models.forward(teacher, tokens, loss.teacher_model or loss.model)
    log_probability = jax.nn.log_softmax(student)
    gold = jnp.take_along_axis(log_probability, batch.targets[..., None], axis=-1)
    config = loss.config
    log_q = jax.nn.log_softmax(student / config.temperature)
    log_p = jax.nn.log_softmax(other / config.temperature)
    if config.direction == "reverse":
        log_q, log_p = log_p, log_q
    kl = config.temperature**2 * jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=-1)
    ce, kl = (jnp.sum(x * batch.loss_weights) for x in (-gold[..., 0], kl))
    return config.ce_weight * ce + config.kl_weight * kl, (ce, kl)


@pytest.mark.parametrize(
    ("direction", "chunk", "teacher_model"),
    [("forward", 4096, None), ("forward", 24, SMALLER), ("reverse", 24, None)],
    ids=["forward", "in pieces, from a smaller teacher", "reverse"],
)
def test_values_and_gradients_are_those_of_the_definition(
    params, direction, chunk, teacher_model
):
    loss = dataclasses.replace(
        LOSS,
        config=dataclasses.replace(CONFIG, direction=direction),
        teacher_model=teacher_model,
        compute=models.Compute(loss_chunk=chunk),
    )
    teacher = models.init(jax.random.key(5), teacher_model or MODEL)
    batch = batch_with_weights()

    def total(params):
        found = loss(params, batch, teacher)
        return found.total, found

    (value, found), grads = jax.jit(jax.value_and_grad(total, has_aux=True))(params)
    (expected, parts), expected_grads = jax.jit(
        jax.value_and_grad(lambda p: naive(p, batch, teacher, loss), has_aux=True)
    )(params)
    np.testing.assert_allclose(value, expected, rtol=2e-5)
    assert list(found.parts) == ["cross_entropy", "divergence"]
    np.testing.assert_allclose([*found.parts.values()], parts, rtol=2e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=2e-5),
        grads,
        expected_grads,
    )


def test_a_model_does_not_diverge_from_itself(params):
    batch = batch_with_weights()
    alone = with_config(ce_weight=0.0)
    grads = jax.grad(lambda p: alone(p, batch, params).total)(params)
    assert max(float(jnp.abs(g).max()) for g in jax.tree.leaves(grads)) < 1e-4
    parts = LOSS(params, batch, params).parts
    assert abs(float(parts["divergence"])) < 1e-3
    plain = train.NextToken(model=MODEL)(params, batch, None).total
    np.testing.assert_allclose(parts["cross_entropy"], plain, rtol=1e-6)


def test_no_gradient_reaches_the_teacher(params):
    teacher = models.init(jax.random.key(5), MODEL)
    grads = jax.grad(lambda t: LOSS(params, make_batch(0), t).total)(teacher)
    assert all(bool((g == 0).all()) for g in jax.tree.leaves(grads))


def test_a_step_learns_from_a_teacher(params, masks):
    """The masked student comes nearer to the teacher, and stays masked."""
    teacher = models.init(jax.random.key(5), MODEL)
    alone = with_config(ce_weight=0.0, kl_weight=1.0)
    state = train.init_state(params, masks, OPTIMIZER, rng=jax.random.key(0))
    found = []
    for _ in range(8):
        state, metrics = train.train_step(
            state, make_batch(0), 1e-2, teacher, loss=alone, optimizer=OPTIMIZER
        )
        found.append(float(metrics["divergence"]))
    assert found[-1] < 0.8 * found[0]


def test_neither_models_logits_ever_exist_whole():
    """Peak temporary memory of the compiled gradient, 64 pieces against one."""
    wide = dataclasses.replace(MODEL, vocab_size=32_768)
    batch = jax.eval_shape(lambda: jax.tree.map(jnp.asarray, make_batch(0, 4, 256)))
    weights = models.abstract_params(wide)

    def temporary(chunk):
        compute = models.Compute(loss_chunk=chunk)
        loss = train.Distill(model=wide, compute=compute)
        step = jax.jit(jax.grad(lambda p, b, t: loss(p, b, t).total))
        compiled = step.lower(weights, batch, weights).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    logits = 4 * 256 * 32_768 * 4
    assert temporary(1024) > 2 * logits
    assert temporary(16) < logits / 2


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"temperature": 0.0}, "distill.temperature must be positive, found 0.0"),
        ({"kl_weight": -1.0}, "distill.kl_weight must not be negative"),
        ({"top_k": 0}, "distill.top_k must be at least 1, found 0"),
        ({"top_k": 4, "direction": "reverse"}, "set direction to 'forward'"),
    ],
)
def test_bad_settings_are_named(fields, message):
    with pytest.raises(InputError, match=message):
        dataclasses.replace(CONFIG, **fields)


def test_a_teacher_that_does_not_fit_is_named():
    other = dataclasses.replace(MODEL, vocab_size=100)
    with pytest.raises(InputError, match="has 100 token ids and the student 64"):
        dataclasses.replace(LOSS, teacher_model=other)
    features = dataclasses.replace(CONFIG, feature_weight=1.0)
    with pytest.raises(InputError, match="1 blocks of width 16 and the student 2 of"):
        train.Distill(model=MODEL, teacher_model=SMALLER, config=features)
