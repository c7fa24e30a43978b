"""A teacher's most probable tokens on disk, and learning from them."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparse_jax import models, train
from sparse_jax.types import InputError
from tests.train.helpers import CONFIG, MODEL, OPTIMIZER, make_batch, make_batches

TAU = 1.5
DISTILL = train.DistillConfig(ce_weight=0.7, kl_weight=0.4, temperature=TAU, top_k=8)
LOSS = train.Distill(model=MODEL, config=DISTILL)


@pytest.fixture(scope="module")
def weights():
    return models.init(jax.random.key(5), MODEL)


def cached(directory, weights, digest="a", **options):
    options = {"top_k": 8, "temperature": TAU} | options
    return train.CachedTeacher(
        directory, weights, MODEL, identity={"teacher": digest}, **options
    )


def ask(teacher, position=0):
    batch = make_batch(position)
    return teacher(position, batch, jax.tree.map(jnp.asarray, batch))


def test_the_highest_probabilities_are_kept_and_read_again(tmp_path, weights):
    found = ask(cached(tmp_path, weights))
    logits = models.forward(weights, jnp.asarray(make_batch(0).tokens), MODEL)
    log_p, ids = jax.lax.top_k(jax.nn.log_softmax(logits / TAU), 8)
    assert (found.ids == ids).all()
    np.testing.assert_allclose(found.log_probs, log_p, atol=2e-3)
    other = models.init(jax.random.key(6), MODEL)  # is not asked again
    again = ask(cached(tmp_path, other))
    assert jax.tree.all(jax.tree.map(lambda x, y: bool((x == y).all()), found, again))


def test_all_probabilities_give_the_whole_divergence(tmp_path, params, weights):
    batch = jax.tree.map(jnp.asarray, make_batch(0))
    kept = ask(cached(tmp_path, weights, top_k=MODEL.vocab_size))

    def total(params, teacher):
        found = LOSS(params, batch, teacher)
        return found.total, found

    gradient = jax.value_and_grad(total, has_aux=True)
    (value, found), grads = gradient(params, kept)
    (expected, _), whole_grads = gradient(params, weights)
    # float16 knows a logarithm near -4 to 2^-10.
    np.testing.assert_allclose(value, expected, rtol=2**-10)
    assert float(found.parts["tail"]) < 0.01 * float(found.weight)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=0.02, atol=2e-2),
        grads,
        whole_grads,
    )


def test_the_gradient_is_that_of_the_sum(tmp_path, params, weights):
    """Against autodiff through the whole logits."""
    batch = jax.tree.map(jnp.asarray, make_batch(0))
    kept = ask(cached(tmp_path, weights))
    p_k = jnp.exp(kept.log_probs.astype(jnp.float32))

    def definition(params):
        logits = models.forward(params, batch.tokens, MODEL)
        gold = jnp.take_along_axis(
            jax.nn.log_softmax(logits), batch.targets[..., None], axis=-1
        )
        q = jax.nn.softmax(logits / TAU)
        q_k = jnp.take_along_axis(q, kept.ids, axis=-1)
        p_rest, q_rest = 1 - p_k.sum(-1), 1 - q_k.sum(-1)
        kl = (p_k * jnp.log(p_k / q_k)).sum(-1) + p_rest * jnp.log(p_rest / q_rest)
        return -0.7 * gold.sum() + 0.4 * TAU**2 * kl.sum()

    found, grads = jax.value_and_grad(lambda p: LOSS(p, batch, kept).total)(params)
    expected, expected_grads = jax.value_and_grad(definition)(params)
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-4),
        grads,
        expected_grads,
    )
    whole = LOSS(params, batch, weights).parts["divergence"]
    assert float(LOSS(params, batch, kept).parts["divergence"]) < float(whole)


def test_micro_batches_take_their_own_rows(tmp_path, params, masks, weights):
    batch, kept = make_batch(0), ask(cached(tmp_path, weights))
    losses = []
    for accumulate in (1, 4):
        state = train.init_state(params, masks, OPTIMIZER, rng=jax.random.key(0))
        _, found = train.train_step(
            state, batch, 1e-3, kept, loss=LOSS, optimizer=OPTIMIZER,
            accumulate=accumulate,
        )  # fmt: skip
        losses.append([float(found["loss"]), float(found["divergence"])])
    np.testing.assert_allclose(*losses, rtol=1e-5)


def test_a_damaged_record_is_made_again(tmp_path, weights, caplog):
    found = ask(cached(tmp_path, weights))
    (record,) = tmp_path.glob("0*")
    content = bytearray(record.read_bytes())
    content[10] ^= 1
    record.write_bytes(content)
    again = ask(cached(tmp_path, weights))
    assert "is damaged; the teacher computes it again" in caplog.text
    assert (again.ids == found.ids).all()
    assert record.read_bytes() != bytes(content)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"digest": "b"}, "was made by another teacher: teacher is 'a', this run has"),
        ({"temperature": 2.0}, "made by other settings: temperature is 1.5, this run"),
        ({"top_k": 65}, "distill.top_k = 65 is more than the 64 token ids"),
    ],
)
def test_records_of_something_else_are_refused(tmp_path, weights, options, message):
    cached(tmp_path, weights)
    with pytest.raises(InputError, match=message):
        cached(tmp_path, weights, **options)


def test_training_goes_on_where_it_was_killed(tmp_path, params, masks, weights):
    """From the cache, some of which the first part of the run has filled."""
    config = dataclasses.replace(CONFIG, steps=8)

    def fit(directory, batches):
        state = train.init_state(params, masks, OPTIMIZER, rng=jax.random.key(0))
        teacher = cached(directory / "cache", weights)
        return train.fit(
            state, batches, config, LOSS, directory=directory, name="kd",
            teacher=teacher, quiet=True,
        )[0]  # fmt: skip

    def until_killed(start):
        yield from itertools.islice(make_batches(start), 6)
        raise KeyboardInterrupt

    whole = fit(tmp_path / "whole", make_batches)
    with pytest.raises(KeyboardInterrupt):
        fit(tmp_path / "parts", until_killed)
    found = fit(tmp_path / "parts", make_batches)
    same = jax.tree.map(lambda x, y: bool((x == y).all()), found.params, whole.params)
    assert jax.tree.all(same)
