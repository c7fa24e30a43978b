"""Decay of pruned weights against the formulas, and what must not decay."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparse_jax import models, train
from sparse_jax.train import PrunedDecayConfig
from sparse_jax.train.pruned_decay import scale_by_adam_with_decay
from sparse_jax.types import InputError
from tests.train.helpers import MODEL, make_batch

B1, B2, EPS = 0.9, 0.95, 1e-8
RULES = ("sr_ste", "ast", "cast")


def by_formula(rule, grads, w, m, decay, progress):
    """The directions of several steps on weights that stay, in float64."""
    mu = nu = np.zeros_like(w)
    for t, g in enumerate(grads, 1):
        if rule == "sr_ste":
            g = g + decay * (1 - m) * w
        mu = B1 * mu + (1 - B1) * g
        u = mu
        if rule == "ast":
            u = mu + decay * (1 - m) * w
        if rule == "cast":
            l1 = (1 - progress) * mu + progress * decay * np.sign(w)
            u = m * mu + (1 - m) * l1
        seen = g if rule == "sr_ste" else u
        nu = B2 * nu + (1 - B2) * seen**2
        yield (u / (1 - B1**t)) / (np.sqrt(nu / (1 - B2**t)) + EPS)


def transformation(rule):
    return scale_by_adam_with_decay(
        rule, b1=B1, b2=B2, eps=EPS, mu_dtype=jnp.dtype("float32")
    )


@pytest.mark.parametrize("rule", RULES)
def test_directions_are_those_of_the_formulas(rule):
    rng = np.random.default_rng(0)
    w, m = rng.normal(size=(5, 6)), rng.random((5, 6)) < 0.5
    grads = rng.normal(0, 1e-2, (4, 5, 6))
    tx = transformation(rule)
    params = {"kernel": jnp.float32(w), "bias": jnp.ones(3)}
    masks = {"kernel": jnp.asarray(m), "bias": None}
    state = tx.init(params)
    for g, expected in zip(
        grads, by_formula(rule, grads, w, m, 3e-3, 0.4), strict=True
    ):
        updates, state = tx.update(
            {"kernel": jnp.float32(g), "bias": jnp.zeros(3)},
            state, params, masks=masks, decay=3e-3, progress=0.4,
        )  # fmt: skip
        np.testing.assert_allclose(updates["kernel"], expected, rtol=1e-4)
        assert not updates["bias"].any()


def test_without_a_rule_it_is_adam_to_the_bit():
    import optax

    grads = [
        {"a": jnp.float32(np.random.default_rng(i).normal(size=7))} for i in range(3)
    ]
    plain = optax.scale_by_adam(b1=B1, b2=B2, eps=EPS, mu_dtype=jnp.float32)
    params = {"a": jnp.ones(7)}
    masks = {"a": jnp.arange(7) < 3}
    ours, theirs = transformation("none"), plain
    a, b = ours.init(params), theirs.init(params)
    for g in grads:
        x, a = ours.update(g, a, params, masks=masks, decay=1.0, progress=1.0)
        y, b = theirs.update(g, b, params)
        assert (x["a"] == y["a"]).all()


@dataclasses.dataclass(frozen=True)
class Nothing:
    """A loss that no weight changes, computed in bfloat16 like a real one."""

    compute: models.Compute = models.Compute(dtype="bfloat16")

    def __call__(self, params, batch, teacher):
        found = train.NextToken(model=MODEL, compute=self.compute)(params, batch, None)
        return found._replace(total=0.0 * found.total)


@pytest.mark.parametrize("rule", RULES)
def test_without_a_gradient_only_pruned_weights_shrink(params, masks, rule):
    """Through the whole step, at a lambda that bfloat16 would lose."""
    optimizer = train.OptimizerConfig(
        weight_decay=0.0, pruned_decay=PrunedDecayConfig(rule=rule, peak=1e-6)
    )
    state = train.init_state(
        params, masks, optimizer, rng=jax.random.key(0), mode="straight_through"
    )
    before = jax.tree.map(np.asarray, state.params)
    for step in range(3):
        state, _ = train.train_step(
            state, make_batch(step), 1e-4, decay=1e-6, progress=1.0, loss=Nothing(),
            optimizer=optimizer, mask_mode="straight_through",
        )  # fmt: skip

    def check(mask, old, new):
        if mask is None:
            assert (old == new).all()
            return
        kept, old, new = np.asarray(mask), np.asarray(old), np.asarray(new)
        assert (old[kept] == new[kept]).all()
        # Epsilon holds back the smallest: lambda |w| is not far above it.
        large = ~kept & (abs(old) > 5e-3)
        assert large.sum() > 50
        assert (abs(new[large]) < abs(old[large]) - 1e-5).all()
        assert (abs(new[~kept]) <= abs(old[~kept]) + 3e-4).all()

    jax.tree.map(
        check, state.masks, before, state.params, is_leaf=lambda leaf: leaf is None
    )


def test_lambda_rises_to_its_peak_and_stays():
    config = PrunedDecayConfig(rule="ast", peak=6e-5, rise_steps=4)
    np.testing.assert_allclose(
        [config(step) for step in range(6)],
        [1.5e-5, 3e-5, 4.5e-5, 6e-5, 6e-5, 6e-5],
    )
    assert PrunedDecayConfig(rule="sr_ste", peak=2e-4)(0) == 2e-4


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rule": "ast"}, "rule 'ast' and peak 0.0 contradict each other"),
        ({"peak": 1e-4}, "rule 'none' and peak 0.0001 contradict each other"),
        ({"rule": "ast", "peak": -1.0}, "pruned_decay.peak must be >= 0, found -1.0"),
        (
            {"rule": "ast", "peak": 1.0, "rise_steps": -1},
            "pruned_decay.rise_steps must be >= 0, found -1",
        ),
    ],
)
def test_bad_settings_are_named(fields, message):
    with pytest.raises(InputError, match=message):
        PrunedDecayConfig(**fields)


def test_a_rise_that_ends_after_training_is_refused():
    config = PrunedDecayConfig(rule="ast", peak=1e-4, rise_steps=11)
    config.check(11)
    with pytest.raises(InputError, match="rise_steps = 11 ends after training, which"):
        config.check(10)
