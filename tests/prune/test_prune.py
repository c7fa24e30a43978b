import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparse_jax.models import INPUTS, Compute, LlamaConfig, embed, forward, hidden, init
from sparse_jax.prune import (
    ParamsBlocks,
    PruneConfig,
    hessians,
    prune,
    sample_windows,
    walk,
)
from sparse_jax.solvers import sparsegpt as sparsegpt_module
from sparse_jax.sparsity import masks as mask_trees
from sparse_jax.tree import leaf_paths
from sparse_jax.types import InputError

# Grouped-query attention, biases and tied embeddings all at once.
CONFIG = LlamaConfig(
    vocab_size=64,
    d_model=32,
    d_ff=48,
    n_layers=2,
    n_heads=4,
    n_kv_heads=2,
    max_seq_len=32,
    tie_embeddings=True,
    attention_bias=True,
    mlp_bias=True,
    init_std=0.2,
)
TOKENS = jnp.asarray(np.random.default_rng(0).integers(0, 64, (10, 16)), jnp.int32)
RULES = PruneConfig().rules
LINEARS = [f"layers/{name}/kernel" for names in INPUTS.values() for name in names]


@pytest.fixture(scope="module")
def params():
    return init(jax.random.key(0), CONFIG)


def make_config(**changes):
    return PruneConfig(**({"batch_size": 4} | changes))


@pytest.fixture(scope="module")
def half(params):
    """Params, masks and rows at 50 %; the last batch of samples is a ragged one."""
    return prune(params, None, TOKENS, CONFIG, make_config())


def test_the_walker_gives_each_block_the_new_outputs(params):
    seen, new, done = [], [], []

    def scale(index, layer_params, inputs):
        seen.append(jnp.concatenate(list(inputs)))
        new.append(jax.tree.map(lambda leaf: leaf * 0.5, layer_params))
        return new[-1]

    outputs = walk(
        ParamsBlocks(params, CONFIG),
        TOKENS,
        Compute(),
        scale,
        batch_size=4,
        progress=lambda *counts: done.append(counts),
    )
    assert done == [(1, 2), (2, 2)]
    np.testing.assert_array_equal(seen[0], embed(params, TOKENS))
    halved = {**params, "layers": jax.tree.map(lambda leaf: leaf / 2, params["layers"])}
    # RMSNorm at the end hides only the scale: compare directions.
    last = jnp.concatenate(list(outputs))
    direction = last / jnp.sqrt(jnp.mean(last**2, -1, keepdims=True) + CONFIG.norm_eps)
    np.testing.assert_allclose(hidden(halved, TOKENS, CONFIG), direction, atol=1e-5)
    # The next process finds the first block done, and sees the same inputs.
    first, second = seen
    seen.clear()
    walk(
        ParamsBlocks(params, CONFIG),
        TOKENS,
        Compute(),
        scale,
        first=1,
        done=new.__getitem__,
        batch_size=4,
    )
    np.testing.assert_array_equal(seen[0], second)
    assert first.shape == second.shape


def test_spooled_activations_are_the_same_and_leave_nothing(params, tmp_path):
    blocks = ParamsBlocks(params, CONFIG)
    options = {"batch_size": 4}
    kept = walk(blocks, TOKENS, Compute(dtype="bfloat16"), None, **options)
    options["spool"] = tmp_path / "spool"
    spooled = walk(blocks, TOKENS, Compute(dtype="bfloat16"), None, **options)
    assert len(list(tmp_path.rglob("*.bin"))) == len(spooled) == 3
    for x, y in zip(kept, spooled, strict=True):
        assert x.dtype == y.dtype == jnp.bfloat16
        np.testing.assert_array_equal(x, y)
    file = next(tmp_path.rglob("2.bin"))
    file.write_bytes(file.read_bytes()[:-2])
    with pytest.raises(InputError, match="truncated"):
        list(spooled)
    del spooled
    assert not list((tmp_path / "spool").iterdir())


def test_hessians_do_not_depend_on_the_batches(params):
    layer = jax.tree.map(lambda leaf: leaf[0], params["layers"])
    x = embed(params, TOKENS)
    whole = hessians(layer, [x], CONFIG)
    split = hessians(layer, [x[:4], x[4:8], x[8:]], CONFIG)
    assert whole.keys() == INPUTS.keys()
    for tap, hessian in whole.items():
        np.testing.assert_allclose(split[tap], hessian, rtol=1e-4, atol=1e-5)
    rms = jnp.mean(jnp.diagonal(whole["attention_in"]))  # normed inputs: 2 T / n * n
    assert float(rms) == pytest.approx(2 * 16, rel=1e-3)


def test_masks_are_exact_and_cover_the_linears_only(params, half):
    pruned, masks, rows, *_ = half
    for path, mask in leaf_paths(masks).items():
        assert (mask is not None) == (path in LINEARS)
        if mask is None:
            np.testing.assert_array_equal(
                leaf_paths(pruned)[path], leaf_paths(params)[path]
            )
        else:
            count = int(mask[0].size * 0.5)
            assert ((~mask).sum((1, 2)) == count).all()
    assert mask_trees.violations(pruned, masks) == 0
    assert [(row["layer"], row["path"]) for row in rows] == [
        (layer, path) for layer in range(2) for path in LINEARS
    ]
    for row in rows:
        assert row["sparsity"] == 0.5
        assert 0 < row["relative_error"] < 1
        assert row["damping"] == pytest.approx(0.01)
        assert row["seconds"] > 0


def test_sparsegpt_keeps_the_model_closest(params):
    logits = forward(params, TOKENS, CONFIG)
    error = {}
    for solver in ("magnitude", "wanda", "sparsegpt"):
        pruned, _, _, *_ = prune(
            params, None, TOKENS, CONFIG, make_config(solver=solver)
        )
        error[solver] = float(
            jnp.square(forward(pruned, TOKENS, CONFIG) - logits).sum()
        )
    assert error["sparsegpt"] < min(error["wanda"], error["magnitude"])


@pytest.mark.parametrize("solver", ["magnitude", "wanda", "sparsegpt"])
def test_a_second_pruning_is_nested(half, solver):
    pruned, masks, _, *_ = half
    config = make_config(solver=solver, sparsity=0.7)
    again, new_masks, rows, *_ = prune(pruned, masks, TOKENS, CONFIG, config)
    mask_trees.check_nested(new_masks, masks)
    assert mask_trees.violations(again, masks) == 0
    for row, mask in zip(
        rows[:7], map(leaf_paths(new_masks).get, LINEARS), strict=True
    ):
        assert (~mask[0]).sum() == int(mask[0].size * 0.7)
        assert row["sparsity"] == pytest.approx(int(mask[0].size * 0.7) / mask[0].size)


def test_without_nesting_zeros_may_come_back(half):
    pruned, masks, _, *_ = half
    config = make_config(sparsity=0.25, nested=False)
    _, new_masks, _, *_ = prune(pruned, masks, TOKENS, CONFIG, config)
    assert not mask_trees.is_nested(new_masks, masks)
    kept, total = mask_trees.count(new_masks)
    assert kept == total * 3 // 4


def test_rules_give_matrices_their_own_patterns(params, half):
    rules = (
        ("layers/mlp/down/kernel", "dense"),
        ("layers/attention/./kernel", "2:4"),
        ("layers/mlp/up/kernel", "group:8@0.75"),
        ("layers/mlp/gate/kernel", "pattern"),
        (".*", "dense"),
    )
    config = make_config(rules=rules, sparsity=0.6)
    pruned, masks, rows, *_ = prune(params, None, TOKENS, CONFIG, config)
    assert masks["layers"]["mlp"]["down"]["kernel"] is None
    sparsity = {row["path"].split("/")[2]: row["sparsity"] for row in rows}
    assert sparsity == {
        "q": 0.5,
        "k": 0.5,
        "v": 0.5,
        "o": 0.5,
        "up": 0.75,
        "gate": pytest.approx(0.6, abs=1e-3),
    }
    # A rule that says dense does not revive what a nested prior has pruned.
    half_pruned, half_masks, _, *_ = half
    config = make_config(
        rules=((rules[3][0], "pattern"), (".*", "dense")), sparsity=0.8
    )
    pruned, masks, rows, *_ = prune(half_pruned, half_masks, TOKENS, CONFIG, config)
    mask_trees.check_nested(masks, half_masks)
    assert mask_trees.violations(pruned, half_masks) == 0
    assert len(rows) == 2


def test_a_rule_may_name_one_layer(params):
    rules = (
        ("layers/1/mlp/.*", "dense"),
        ("layers/0/mlp/up/kernel", "2:4"),
        (r"layers/mlp/(gate|up|down)/kernel", "pattern"),
        (".*", "dense"),
    )
    config = make_config(rules=rules, solver="magnitude", sparsity=0.75)
    pruned, masks, rows, *_ = prune(params, None, None, CONFIG, config)
    assert [(row["layer"], row["sparsity"]) for row in rows] == [
        (0, 0.75),
        (0, 0.5),
        (0, 0.75),
    ]
    # A stacked mask has no place for a dense layer: it keeps all of it.
    for name in ("gate", "up", "down"):
        assert masks["layers"]["mlp"][name]["kernel"][1].all()
        np.testing.assert_array_equal(
            pruned["layers"]["mlp"][name]["kernel"][1],
            params["layers"]["mlp"][name]["kernel"][1],
        )
    assert masks["layers"]["attention"]["q"]["kernel"] is None


def test_magnitude_needs_no_text(params):
    config = make_config(solver="magnitude", pattern="2:4")
    pruned, masks, rows, *_ = prune(params, None, None, CONFIG, config)
    assert mask_trees.violations(pruned, masks) == 0
    assert {row["relative_error"] for row in rows} == {None}
    calibrated, _, rows, *_ = prune(params, None, TOKENS, CONFIG, config)
    assert 0 < rows[0]["relative_error"] < 1
    kernel = pruned["layers"]["mlp"]["up"]["kernel"]
    np.testing.assert_array_equal(calibrated["layers"]["mlp"]["up"]["kernel"], kernel)


def test_results_repeat_bit_for_bit(params, half):
    again, masks, _, *_ = prune(params, None, TOKENS, CONFIG, make_config())
    for path, leaf in leaf_paths(again).items():
        np.testing.assert_array_equal(leaf, leaf_paths(half[0])[path])
    for path, mask in leaf_paths(masks).items():
        if mask is not None:
            np.testing.assert_array_equal(mask, leaf_paths(half[1])[path])


def test_nothing_compiles_again_for_another_sparsity(params, half, caplog):
    compiled = sparsegpt_module._prune._cache_size()
    with jax.log_compiles(), caplog.at_level(logging.WARNING):
        prune(params, None, TOKENS, CONFIG, make_config(sparsity=0.6))
        prune(params, None, TOKENS, CONFIG, make_config(sparsity=0.1))
    assert sparsegpt_module._prune._cache_size() == compiled
    assert "Compiling" not in caplog.text


def test_sampled_windows_are_reproducible():
    stream = np.arange(50, dtype=np.int32)
    windows = sample_windows(stream, 8, 10, seed=1)
    np.testing.assert_array_equal(windows, sample_windows(stream, 8, 10, seed=1))
    assert (windows != sample_windows(stream, 8, 10, seed=2)).any()
    assert (np.diff(windows, axis=1) == 1).all()
    assert len(set(windows[:, 0].tolist())) == 8
    assert sample_windows(stream, 8, 50, seed=0).shape == (8, 50)
    with pytest.raises(InputError, match="50 tokens, fewer than one sequence of 51"):
        sample_windows(stream, 8, 51, seed=0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sparsity": 1.0}, r"prune.sparsity must be in \[0, 1\)"),
        ({"sparsity": float("nan")}, r"prune.sparsity must be in \[0, 1\)"),
        ({"solver": "best"}, "solver 'best' is not known"),
        ({"pattern": "4:2"}, "at most m = 2"),
        ({"pattern": "rows"}, "'rows' is not known"),
        ({"rules": ((".*", "thin"),)}, "'thin' is not known"),
        ({"samples": 0}, "prune.samples must be at least 1"),
        ({"block_size": 0}, "prune.block_size"),
        ({"damping": -1.0}, "prune.damping"),
        ({"iterations": 0}, "prune.iterations must be at least 1"),
        ({"tolerance": float("inf")}, "prune.tolerance must be >= 0"),
    ],
)
def test_bad_config_is_named(changes, message):
    with pytest.raises(InputError, match=message):
        PruneConfig(**changes)


def test_options_are_those_the_solver_has():
    fields = {"damping": 0.5, "iterations": 3, "block_size": 16}
    assert PruneConfig(solver="magnitude", **fields).options == {}
    assert PruneConfig(solver="admm", **fields).options == {
        "damping": 0.5,
        "iterations": 3,
    }
    assert PruneConfig(solver="admm").options == {}  # and so its own defaults
    refit = PruneConfig(solver="sparsegpt_refit", reference=True, tolerance=0.1)
    assert refit.options == {"tolerance": 0.1, "reference": True}


@pytest.mark.parametrize(
    ("changes", "tokens", "message"),
    [
        ({"pattern": "1:5"}, TOKENS, "attention/k/kernel: .*input.* of 5, found 32"),
        ({"rules": ((".*kernel", "pattern"),)}, TOKENS, "covered by none"),
        ({"rules": (("layers/2/.*", "dense"), *RULES)}, TOKENS, "layers/2.* nothing"),
        ({"rules": ((".*", "pattern"),)}, TOKENS, "only the linears"),
        ({}, None, "needs calibration tokens"),
        ({}, TOKENS + 64, r"must be in \[0, 64\)"),
        ({}, np.zeros((2, 64), np.int32), "longer than the model allows"),
        ({}, np.zeros((0, 8), np.int32), "empty"),
    ],
)
def test_bad_input_stops_before_any_work(params, changes, tokens, message):
    blocks = []
    with pytest.raises(InputError, match=message):
        prune(
            params,
            None,
            tokens,
            CONFIG,
            make_config(**changes),
            progress=lambda *done: blocks.append(done),
        )
    assert not blocks


def test_a_target_below_the_present_sparsity_is_an_error(half):
    pruned, masks, _, *_ = half
    with pytest.raises(InputError, match=r"layers/attention/k/kernel: .*0.4 .*0\.5"):
        prune(pruned, masks, TOKENS, CONFIG, make_config(sparsity=0.4))


def test_activations_that_are_not_finite_are_named(params):
    broken = jax.tree.map(lambda leaf: leaf, params)
    broken["layers"]["attention_norm"]["scale"] = jnp.full((2, 32), jnp.inf)
    with pytest.raises(InputError, match=r"block 0: .*Hessian of layers/attention/q"):
        prune(broken, None, TOKENS, CONFIG, make_config())
