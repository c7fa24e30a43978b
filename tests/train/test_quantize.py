"""Training through grids: what trains, with which masks and losses, and resuming it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparse_jax import models, train
from sparse_jax.prune import PruneConfig
from sparse_jax.quant import GridConfig
from sparse_jax.sparsity import adapters
from sparse_jax.sparsity.adapters import QuantTrainConfig
from sparse_jax.sparsity.masks import count, violations
from sparse_jax.tree import from_paths, leaf_paths
from sparse_jax.types import InputError
from tests.train.helpers import (
    LOSS,
    MODEL,
    config,
    make_batch,
    make_batches,
    tree_equal,
)

GRID = GridConfig(bits=3, group=16, symmetric=False)
ALL = QuantTrainConfig(grid=GRID)
SCALES = QuantTrainConfig(grid=GRID, train="scales")
WEIGHTS = QuantTrainConfig(grid=GRID, train="weights")
UP = "layers/mlp/up"


def optimizer(quantize, **fields):
    own = {"trainable": quantize.trainable, "rates": quantize.rates}
    return train.OptimizerConfig(**own | fields)


def begin(params, masks, quantize=ALL, mode="fixed"):
    whole, kept = adapters.add_grids(params, masks, quantize)
    options = {"rng": jax.random.key(0), "mode": mode}
    return train.init_state(whole, kept, optimizer(quantize), **options)


def steps(state, quantize, n=3, rate=1e-2, **options):
    options = {"loss": LOSS, "optimizer": optimizer(quantize)} | options
    for step in range(n):
        state, metrics = train.train_step(
            state, make_batch(step), rate, quantize=quantize, **options
        )
    return state, metrics


@pytest.mark.parametrize("quantize", [ALL, SCALES, WEIGHTS], ids=lambda q: q.train)
def test_what_trains_and_what_comes_of_it(params, masks, quantize):
    state = begin(params, masks, quantize)
    before = jax.tree.map(np.asarray, leaf_paths(state.params))
    state, _ = steps(state, quantize)
    after = leaf_paths(state.params)
    moved = {p for p in before if not np.array_equal(before[p], after[p])}
    grids = {p for p in before if p.endswith(("quant_scale", "quant_zero"))}
    assert len(grids) == 2 * 7
    assert (
        moved
        == {
            "all": set(before),
            "scales": grids,
            "weights": set(before) - grids,
        }[quantize.train]
    )
    options = {"refit": quantize.refit}
    folded, kept, found = adapters.fold_grids(
        state.params, state.masks, GRID, **options
    )
    assert tree_equal(kept, masks) and violations(folded, kept) == 0
    assert len(found) == 7 * MODEL.n_layers
    # The model that is saved has the loss that training sees.
    batch = make_batch(9)
    weights = adapters.effective_params(state.params, state.masks, grid=GRID, **options)
    losses = [float(LOSS(w, batch).total) for w in (weights, folded)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


def test_the_loss_of_a_step_is_that_of_the_rounded_weights(params, masks):
    state = begin(params, masks)
    rounded, _, _ = adapters.fold_grids(state.params, state.masks, GRID)
    expected = LOSS(rounded, make_batch(0))
    _, metrics = steps(state, ALL, n=1)
    assert float(metrics["loss"]) == pytest.approx(
        float(expected.total / expected.weight), rel=1e-6
    )


def test_rates_are_of_their_leaves(params, masks):
    """Adam's first step is the learning rate: of scales, a factor of it."""
    quantize = dataclasses.replace(ALL, scale_rate=0.5, zero_rate=0.0)
    state = begin(params, masks, quantize)
    before = jax.tree.map(np.asarray, leaf_paths(state.params))
    state, _ = steps(state, quantize, n=1, rate=1e-3)
    after = leaf_paths(state.params)
    step = np.abs(np.asarray(after[f"{UP}/quant_scale"]) - before[f"{UP}/quant_scale"])
    assert step.max() == pytest.approx(0.5e-3, rel=1e-3)
    np.testing.assert_array_equal(after[f"{UP}/quant_zero"], before[f"{UP}/quant_zero"])
    norm = "layers/mlp_norm/scale"
    assert np.abs(np.asarray(after[norm]) - before[norm]).max() == pytest.approx(
        1e-3, rel=1e-2
    )


@pytest.mark.parametrize(
    ("quantize", "score"), [(ALL, "wanda"), (WEIGHTS, "magnitude")]
)
def test_on_top_of_moving_masks(params, masks, quantize, score, tmp_path):
    """AST's masks move, the weights that end are on grids with exact zeros."""
    how = train.AdaptiveConfig(pattern="2:4", every=2, score=score)
    rules = PruneConfig(pattern="2:4").pattern_rules()
    compute = models.Compute()
    adaptive = train.Adaptive.of(how, rules, MODEL, compute, quantize=quantize)
    everything = jax.tree.map(jnp.ones_like, masks)
    dense = begin(params, everything, quantize, mode="straight_through")
    run = config(steps=6, optimizer=optimizer(quantize))
    state, _ = train.fit(
        *(adaptive.begin(dense), make_batches, run, LOSS),
        directory=tmp_path,
        name="ast",
        adaptive=adaptive,
        quantize=quantize,
        quiet=True,
    )
    folded, kept, _ = adapters.fold_grids(
        state.params, state.masks, GRID, refit=quantize.refit
    )
    n_kept, total = count(kept)
    assert 2 * n_kept == total and violations(folded, kept) == 0
    rows = train.read_metrics(tmp_path)
    assert any(row.get("flip_rate", 0) > 0 for row in rows)


def test_scales_learn_from_a_teacher(params, masks):
    loss = train.Distill(
        model=MODEL,
        compute=models.Compute(),
        config=train.DistillConfig(ce_weight=0.0, kl_weight=1.0, temperature=1.0),
    )
    leaves = leaf_paths(params)
    larger = from_paths({p: w if "norm" in p else 6 * w for p, w in leaves.items()})
    state, found = begin(larger, masks, SCALES), []
    codes = np.asarray(leaf_paths(state.params)[f"{UP}/kernel"])
    for _ in range(12):
        state, metrics = train.train_step(
            *(state, make_batch(0), 3e-3, larger),
            loss=loss,
            optimizer=optimizer(SCALES),
            quantize=SCALES,
        )
        found.append(float(metrics["divergence"]))
    assert found[-1] < 0.8 * found[0]
    np.testing.assert_array_equal(leaf_paths(state.params)[f"{UP}/kernel"], codes)


@pytest.mark.parametrize("quantize", [ALL, SCALES], ids=lambda q: q.train)
def test_a_run_that_was_stopped_goes_on_bit_for_bit(params, masks, quantize, tmp_path):
    def fit(directory, to):
        return train.fit(
            begin(params, masks, quantize),
            make_batches,
            config(steps=to, optimizer=optimizer(quantize)),
            LOSS,
            directory=tmp_path / directory,
            name="quantised",
            quantize=quantize,
            quiet=True,
        )[0]

    fit("stopped", 4)
    assert tree_equal(fit("stopped", 8), fit("whole", 8))


def test_lora_trains_under_the_grid(params, masks):
    whole, kept = adapters.add_lora(params, masks, adapters.LoraConfig(rank=2))
    whole, kept = adapters.add_grids(whole, kept, ALL)
    own = optimizer(ALL, trainable=(*adapters.LORA_TRAINED, *ALL.trained))
    state = train.init_state(whole, kept, own, rng=jax.random.key(0))
    before = jax.tree.map(np.asarray, leaf_paths(state.params))
    state, _ = steps(state, ALL, optimizer=own)
    after = leaf_paths(state.params)
    assert {p for p in before if not np.array_equal(before[p], after[p])} == {
        f"{path.removesuffix('/kernel')}/{name}"
        for path, mask in leaf_paths(masks).items()
        if mask is not None
        for name in ("lora_a", "lora_b", "quant_scale", "quant_zero")
    }
    weights = adapters.effective_params(state.params, state.masks, grid=GRID)
    merged, kept = adapters.fold_lora(state.params, state.masks)
    folded, _, _ = adapters.fold_grids(merged, kept, GRID)
    for path, leaf in leaf_paths(folded).items():
        found = leaf_paths(weights)[path]
        np.testing.assert_allclose(found, leaf, rtol=1e-5, atol=1e-6, err_msg=path)


def test_bad_rates_are_named():
    with pytest.raises(InputError, match=r"'.\*' must get a factor >= 0, found -1"):
        train.OptimizerConfig(rates=((".*", -1.0),))
