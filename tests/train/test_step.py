"""The training step: masks held exactly, accumulation, the loss seam, moments."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sparse_jax import models, train
from sparse_jax.sparsity.masks import map_masks, violations
from sparse_jax.tree import leaf_paths
from tests.train.helpers import LOSS, MODEL, OPTIMIZER, make_batch, tree_equal


def run(state, steps=3, **options):
    options = {"loss": LOSS, "optimizer": OPTIMIZER} | options
    for step in range(steps):
        state, metrics = train.train_step(state, make_batch(step), 1e-2, **options)
    return state, metrics


def test_pruned_weights_and_their_moments_stay_exactly_zero(state, masks):
    state, _ = run(state)
    assert violations(state.params, masks) == 0
    adam = next(s for s in state.opt if isinstance(s, optax.ScaleByAdamState))
    assert violations(adam.mu, masks) == 0
    assert violations(adam.nu, masks) == 0
    kept = [m.sum() for m in leaf_paths(masks).values() if m is not None]
    assert all(kept)


def test_kept_weights_move(state, params, masks):
    state, _ = run(state)
    moved = map_masks(
        lambda new, old, m: bool(
            jnp.all((new != old)[slice(None) if m is None else m])
        ),
        state.params["layers"]["mlp"],
        params["layers"]["mlp"],
        masks["layers"]["mlp"],
    )
    assert jax.tree.all(moved)


def test_one_step_equals_adamw_by_hand(params, masks):
    """No clipping, first step: w - lr (g / (|g| + eps) + wd w) on kept weights."""
    optimizer = dataclasses.replace(OPTIMIZER, clip_norm=None)
    state = train.init_state(params, masks, optimizer, rng=jax.random.key(0))
    before, batch = jax.tree.map(jnp.copy, state.params), make_batch(0)

    def mean_loss(p):
        logits = models.forward(p, jnp.asarray(batch.tokens), MODEL)
        return optax.softmax_cross_entropy_with_integer_labels(
            logits, batch.targets
        ).mean()

    loss, grads = jax.value_and_grad(mean_loss)(before)
    state, metrics = train.train_step(
        state, batch, 1e-2, loss=LOSS, optimizer=optimizer
    )
    np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-6)
    path = "layers/mlp/up/kernel"
    w, g, m = (leaf_paths(tree)[path] for tree in (before, grads, masks))
    expected = np.where(m, w - 1e-2 * (g / (np.abs(g) + 1e-8) + 0.1 * w), 0.0)
    found = leaf_paths(state.params)[path]
    # Where the gradient is of rounding size its sign is not determined.
    clear = np.abs(g) > 1e-5
    np.testing.assert_allclose(found[clear], expected[clear], rtol=2e-3, atol=2e-6)


def test_norm_scales_have_no_weight_decay(params, masks):
    state = train.init_state(params, masks, OPTIMIZER, rng=jax.random.key(0))
    transformation = OPTIMIZER.transformation()
    zeros = jax.tree.map(jnp.zeros_like, state.params)
    updates, _ = transformation.update(zeros, state.opt, state.params)
    found = {path: bool(jnp.any(u != 0)) for path, u in leaf_paths(updates).items()}
    assert not any(v for p, v in found.items() if p.endswith("scale"))
    assert all(v for p, v in found.items() if p.endswith(("kernel", "embedding")))


def test_accumulation_gives_the_gradient_of_the_whole_batch(params, masks):
    batch = make_batch(0)
    uneven = np.ones_like(batch.loss_weights)
    uneven[1, 3:] = 0.0  # micro-batches of unequal weight
    batch = batch._replace(loss_weights=uneven)
    results = []
    for accumulate in (1, 4):
        state = train.init_state(params, masks, OPTIMIZER, rng=jax.random.key(0))
        state, metrics = train.train_step(
            state, batch, 0.0, loss=LOSS, optimizer=OPTIMIZER, accumulate=accumulate
        )
        adam = next(s for s in state.opt if isinstance(s, optax.ScaleByAdamState))
        results.append((metrics["loss"], metrics["grad_norm"], adam.mu))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-9), *results
    )


def test_half_precision_moments_are_stored_so_and_train_alike(params, masks):
    losses, moments = {}, {}
    for dtype in ("float32", "bfloat16"):
        optimizer = dataclasses.replace(OPTIMIZER, moment_dtype=dtype)
        state = train.init_state(params, masks, optimizer, rng=jax.random.key(0))
        state, metrics = run(state, steps=5, optimizer=optimizer)
        adam = next(s for s in state.opt if isinstance(s, optax.ScaleByAdamState))
        assert {leaf.dtype for leaf in jax.tree.leaves(adam.mu)} == {jnp.dtype(dtype)}
        assert {leaf.dtype for leaf in jax.tree.leaves(adam.nu)} == {
            jnp.dtype("float32")
        }
        assert violations(adam.mu, masks) == violations(state.params, masks) == 0
        losses[dtype], moments[dtype] = float(metrics["loss"]), adam.mu
    assert losses["bfloat16"] == pytest.approx(losses["float32"], rel=1e-3)
    near, exact = jax.tree.leaves(moments["bfloat16"]), moments["float32"]
    for rounded, moment in zip(near, jax.tree.leaves(exact), strict=True):
        # Every step rounds by up to 1 / 256, and a decay of 0.9 sums ten of them.
        error = jnp.abs(rounded.astype(jnp.float32) - moment).max()
        assert float(error) <= 0.04 * float(jnp.abs(moment).max())


def test_straight_through_masks_give_pruned_weights_a_gradient(params, masks):
    state = train.init_state(params, masks, OPTIMIZER, rng=jax.random.key(0))
    state, _ = run(state, steps=1, mask_mode="straight_through")
    assert violations(state.params, masks) > 0


@dataclasses.dataclass(frozen=True)
class Imitate:
    """A loss that needs a teacher: squared distance of the logits."""

    def __call__(self, params, batch, teacher):
        student = models.forward(params, batch.tokens, MODEL)
        target = models.forward(teacher, batch.tokens, MODEL)
        total = jnp.square(student - target).mean(-1).sum()
        weight = batch.loss_weights.sum()
        return train.LossSum(
            total, weight, {"teacher_energy": jnp.square(target).sum()}
        )


def test_the_loss_seam_takes_a_teacher(state):
    params = jax.tree.map(lambda w: 3 * w, models.init(jax.random.key(5), MODEL))
    start = jax.tree.map(jnp.copy, state)
    _, first = run(start, steps=1, loss=Imitate(), teacher=params)
    _, last = run(state, steps=8, loss=Imitate(), teacher=params)
    assert last["loss"] < 0.9 * first["loss"]
    assert last["teacher_energy"] > 0


def test_init_state_leaves_the_callers_arrays_alone(params, masks):
    state = train.init_state(params, masks, OPTIMIZER, rng=jax.random.key(0))
    run(state, steps=1)
    assert not any(x.is_deleted() for x in jax.tree.leaves((params, masks)))


def test_steps_are_deterministic(params, masks):
    finals = []
    for _ in range(2):
        state = train.init_state(params, masks, OPTIMIZER, rng=jax.random.key(0))
        finals.append(run(state)[0])
    assert tree_equal(*finals)


@pytest.mark.parametrize("remat", ["none", "dots", "block"])
def test_bfloat16_compute_trains_float32_weights(state, remat):
    compute = models.Compute(dtype="bfloat16", remat=remat)
    loss = train.NextToken(model=MODEL, compute=compute)
    state, metrics = run(state, loss=loss)
    assert all(w.dtype == jnp.float32 for w in jax.tree.leaves(state.params))
    assert np.isfinite(metrics["loss"])
