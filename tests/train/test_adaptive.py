"""Masks that move: what is drawn, when, and that a killed run draws the same."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sparse_jax import models, train
from sparse_jax.models import Compute
from sparse_jax.prune import PruneConfig, hessians
from sparse_jax.sparsity import NM, Unstructured, parse
from sparse_jax.sparsity.masks import project_kernel, violations
from sparse_jax.train import Adaptive, AdaptiveConfig, PrunedDecayConfig
from sparse_jax.train.adaptive import NORMS, refresh
from sparse_jax.train.mask_change import summary
from sparse_jax.tree import from_paths, leaf_paths
from sparse_jax.types import InputError
from tests.train.helpers import (
    CONFIG,
    LOSS,
    MODEL,
    OPTIMIZER,
    make_batch,
    make_batches,
    tree_equal,
)

UP = "layers/mlp/up/kernel"
# Two linears of unlike inputs, to compile less: each is projected by its own code.
MLP = (("layers/mlp/(up|down)/kernel", "pattern"), (".*", "dense"))
ALL = PruneConfig().rules


def adaptive(rules=MLP, parent=None, **fields):
    config = AdaptiveConfig(**fields)
    sparsity = 0.0 if config.sparsity is None else config.sparsity
    pruned = PruneConfig(pattern=config.pattern, sparsity=sparsity, rules=rules)
    return Adaptive.of(config, pruned.pattern_rules(), MODEL, Compute(), parent)


def whole_masks(params, paths):
    return from_paths(
        {
            path: jnp.ones(leaf.shape, bool) if path in paths else None
            for path, leaf in leaf_paths(params).items()
        }
    )


def start(params, how, optimizer=OPTIMIZER):
    masks = whole_masks(params, dict(how.patterns))
    mode = how.config.mode
    state = train.init_state(params, masks, optimizer, rng=jax.random.key(1), mode=mode)
    return how.begin(state)


def draw(state, how, step=0):
    counts = how.counts(state.params, step)
    return refresh(state, counts, make_batch(0), adaptive=how)


@pytest.mark.parametrize(
    ("pattern", "sparsity", "kept"),
    [("2:4", 0.5, 0.5), ("5:16", 0.5, 5 / 16), ("group:8", 0.75, 0.25),
     ("unstructured", 0.7, None)],
)  # fmt: skip
def test_masks_are_the_projections_of_the_scores(params, pattern, sparsity, kept):
    how = adaptive(pattern=pattern, sparsity=sparsity)
    state, change = draw(start(params, how), how)
    for path, p in how.patterns:
        weights = leaf_paths(params)[path]
        score = (
            abs(weights) if p.divisors == (1, 1) or isinstance(p, NM) else weights**2
        )
        assert (leaf_paths(state.masks)[path] == project_kernel(p, score)).all()
        share = float(leaf_paths(state.masks)[path].mean())
        np.testing.assert_allclose(change[path]["flips"].mean(), 1 - share, rtol=1e-6)
        size = weights[0].size
        exact = kept or (size - int(size * 0.7)) / size
        assert share == pytest.approx(exact, abs=1e-7)
    # The weights themselves stay, to come back.
    assert tree_equal(state.params, params)


@pytest.mark.parametrize("pattern", ["unstructured", "group:8"])
def test_every_matrix_keeps_what_its_parent_keeps(params, pattern):
    """However unevenly the parent's sparsity lies over matrices and layers."""
    masks = leaf_paths(start(params, adaptive(pattern=pattern)).masks)
    for path, shares in ((UP, (0.25, 0.75)), ("layers/mlp/down/kernel", (0.5, 0.875))):
        parts = [
            project_kernel(parse(pattern, share), leaf_paths(params)[path][i : i + 1])
            for i, share in enumerate(shares)
        ]
        masks[path] = jnp.concatenate(parts)
    how = adaptive(pattern=pattern, sparsity=None, parent=from_paths(masks))
    trained = jax.tree.map(lambda x: x[..., ::-1], params)
    first = start(trained, how)
    state, _ = draw(first, how, step=10)
    for path, _ in how.patterns:
        found = leaf_paths(state.masks)[path]
        assert (found.sum((1, 2)) == masks[path].sum((1, 2))).all()
        assert (found != masks[path]).any()
    assert tree_equal(how.first_masks(params, from_paths(masks)), from_paths(masks))
    other = "group:8" if pattern == "unstructured" else "group:16"
    with pytest.raises(InputError, match=f"zeros outside of the pattern '{other}'"):
        adaptive(pattern=other, sparsity=None, parent=from_paths(masks))
    with pytest.raises(InputError, match=f"but {UP} has none"):
        parent = from_paths(masks | {UP: None})
        adaptive(pattern=pattern, sparsity=None, parent=parent)


def test_pruned_weights_come_back_straight_through(params):
    how = adaptive(pattern="2:4")
    state, _ = draw(start(params, how), how)
    grown = leaf_paths(state.params)
    kept = leaf_paths(state.masks)[UP]
    grown[UP] = jnp.where(kept, grown[UP], grown[UP] * 100)
    state = dataclasses.replace(state, params=from_paths(grown))
    state, change = draw(state, how)
    assert float(change[UP]["flips"].mean()) > 0.9
    assert float(change["layers/mlp/down/kernel"]["flips"].max()) == 0.0


def test_fixed_masks_only_shrink_as_the_ramp_says(params):
    how = adaptive(
        pattern="unstructured", sparsity=0.8, mode="fixed", every=2, ramp_steps=9
    )
    state = start(params, how)
    before, found = None, []
    for step in (0, 2, 4, 6, 8, 10):
        assert how.config.due(step)
        state, _ = draw(state, how, step)
        mask = np.asarray(leaf_paths(state.masks)[UP])
        assert before is None or not (mask & ~before).any()
        assert not np.asarray(leaf_paths(state.params)[UP])[~mask].any()
        before = mask
        found.append(1 - float(mask.mean()))
    expected = [0.8 * (1 - (1 - s / 8) ** 3) for s in (0, 2, 4, 6, 8)] + [0.8]
    np.testing.assert_allclose(found, expected, atol=1e-3)


def test_the_kept_of_every_four_fall_to_two(params):
    how = adaptive(pattern="2:4", mode="fixed", every=1, ramp_steps=4)
    state, found = start(params, how), []
    for step in range(5):
        state, _ = draw(state, how, step)
        found.append(float(leaf_paths(state.masks)[UP].mean()))
    assert found == [1.0, 0.75, 0.75, 0.75, 0.5]


def test_when_masks_are_drawn():
    config = AdaptiveConfig(every=3, freeze_at=7)
    assert [step for step in range(12) if config.due(step)] == [0, 3, 6]
    assert AdaptiveConfig(every=3).due(9)


def test_wanda_sees_running_norms_of_the_masked_model(params):
    how = adaptive(pattern="unstructured", sparsity=0.5, score="wanda", norm_decay=0.75)
    state, _ = draw(start(params, how), how)
    batch = make_batch(0)
    weights = jax.tree.map(lambda w: w[0], params["layers"])
    x = models.embed(params, jnp.asarray(batch.tokens))
    taps = hessians(weights, [x], MODEL)
    # H = 2 / n X^T X of n sequences; the running mean has seen one batch of four.
    norms = np.diag(taps["mlp_in"]) / 2 / batch.tokens.shape[1] * 0.25
    np.testing.assert_allclose(state.extra[NORMS][UP][0], norms, rtol=1e-4)
    score = abs(leaf_paths(params)[UP]) * jnp.sqrt(state.extra[NORMS][UP])[..., None]
    expected = project_kernel(Unstructured(0.5), score)
    assert (leaf_paths(state.masks)[UP] == expected).all()
    # The next draw sees other inputs of the layers behind: those of masked ones.
    down = "layers/mlp/down/kernel"
    first = np.asarray(state.extra[NORMS][down])
    again, _ = draw(state, how)
    assert not np.allclose(again.extra[NORMS][down], 1.75 * first, rtol=1e-2)


def test_fisher_weighs_with_adams_second_moment(params):
    how = adaptive(pattern="unstructured", sparsity=0.5, score="fisher")
    state = start(params, how)
    first, _ = draw(jax.tree.map(jnp.copy, state), how)
    score = abs(leaf_paths(params)[UP])  # nothing is known yet
    expected = project_kernel(Unstructured(0.5), score)
    assert (leaf_paths(first.masks)[UP] == expected).all()
    nu = leaf_paths(params)[UP][::-1] ** 2
    moments = from_paths(leaf_paths(state.opt[1].nu) | {UP: jnp.copy(nu)})
    state = dataclasses.replace(state, opt=optax.tree.set(state.opt, nu=moments))
    expected = project_kernel(Unstructured(0.5), score**2 * nu)
    state, _ = draw(state, how)
    assert (leaf_paths(state.masks)[UP] != expected).mean() < 1e-3
    assert (leaf_paths(state.masks)[UP] != leaf_paths(first.masks)[UP]).mean() > 0.05


OPTIONS = train.OptimizerConfig(
    pruned_decay=PrunedDecayConfig(rule="ast", peak=1e-3, rise_steps=4)
)


def fit(params, directory, how, batches=make_batches, **fields):
    config = dataclasses.replace(CONFIG, optimizer=OPTIONS, **fields)
    state = start(params, how, OPTIONS)
    return train.fit(
        state, batches, config, LOSS, directory=directory, name="ast", adaptive=how,
        quiet=True,
    )[0]  # fmt: skip


@pytest.mark.parametrize(
    ("score", "rules"), [("magnitude", MLP), ("wanda", ALL), ("fisher", MLP)]
)
def test_a_killed_run_ends_with_the_same_bits(tmp_path, params, score, rules):
    how = adaptive(rules, pattern="2:4", every=2, score=score)
    whole = fit(params, tmp_path / "whole", how)

    def until_killed(start):
        yield from itertools.islice(make_batches(start), 7)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(params, tmp_path / "parts", how, until_killed)
    found = fit(params, tmp_path / "parts", how)
    assert tree_equal(found, whole)
    rows = [train.read_metrics(tmp_path / name) for name in ("whole", "parts")]
    for row in itertools.chain(*rows):
        row.pop("tokens_per_second")
    assert rows[0] == rows[1]
    drawn = [row["step"] for row in rows[0] if "flip_rate" in row]
    assert drawn == [2, 4, 6, 8, 10]  # and not after the last step
    assert {"decayed_share", "kept_norm", "flip_rate/layer_1"} <= rows[0][1].keys()


def test_what_was_trained_ends_in_the_pattern(tmp_path, params):
    how = adaptive(pattern="2:4", every=3)
    state = fit(params, tmp_path, how)
    mask = leaf_paths(state.masks)[UP]
    groups = np.asarray(mask).swapaxes(-1, -2).reshape(-1, 4)
    assert (groups.sum(1) == 2).all()
    assert violations(state.params, state.masks) > 0  # still dense: the stage masks it


def test_a_summary_has_a_number_per_layer(params):
    how = adaptive(pattern="2:4")
    _, change = draw(start(params, how), how)
    found = summary(jax.device_get(change))
    assert found["flip_rate"] == found["flip_rate/layer_0"] == 0.5
    kept = [project_kernel(NM(2, 4), abs(w)) * w for p, w in leaf_paths(params).items()
            if p in dict(how.patterns)]  # fmt: skip
    norm = np.sqrt(sum(float((w**2).sum()) for w in kept))
    assert found["kept_norm"] == pytest.approx(norm, rel=1e-5)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"every": 0}, "adaptive.every must be >= 1, found 0"),
        ({"norm_decay": 1.0}, r"adaptive.norm_decay must be in \[0, 1\), found 1.0"),
        ({"pattern": "2of4"}, "pattern '2of4' is not known"),
        (
            {"sparsity": None, "ramp_steps": 9},
            "adaptive.ramp_steps raises the sparsity",
        ),
    ],
)
def test_bad_settings_are_named(fields, message):
    with pytest.raises(InputError, match=message):
        AdaptiveConfig(**fields)


def test_a_ramp_must_end_before_the_masks_freeze():
    config = AdaptiveConfig(ramp_steps=8, freeze_at=6)
    with pytest.raises(InputError, match="ramp_steps = 8 ends after the masks' last"):
        config.check(100)


def test_a_ramp_ends_before_the_last_step():
    """Masks are not drawn after it, so they would never have all of the sparsity."""
    config = AdaptiveConfig(every=10, ramp_steps=40)
    config.check(41)
    with pytest.raises(InputError, match=r"ramp_steps = 40 ends after .* step, 39;"):
        config.check(40)
