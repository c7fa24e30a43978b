import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparse_jax import quant
from sparse_jax.models import INPUTS, LlamaConfig, forward, init
from sparse_jax.prune import (
    Awq,
    LowRank,
    Outliers,
    PruneConfig,
    QuantizeConfig,
    SmoothQuant,
    prune,
)
from sparse_jax.quant import GridConfig
from sparse_jax.sparsity import parse
from sparse_jax.sparsity.adapters import merge
from sparse_jax.sparsity.masks import to_matrix
from sparse_jax.tree import from_paths, leaf_paths
from sparse_jax.types import InputError

# All matrices of one shape, so that little is compiled.
CONFIG = LlamaConfig(
    vocab_size=64,
    d_model=32,
    d_ff=32,
    n_layers=2,
    n_heads=4,
    max_seq_len=32,
    tie_embeddings=True,
    attention_bias=True,
    mlp_bias=True,
    init_std=0.2,
)
TOKENS = jnp.asarray(np.random.default_rng(0).integers(0, 64, (10, 16)), jnp.int32)
LINEARS = [f"layers/{name}/kernel" for names in INPUTS.values() for name in names]
INT3 = GridConfig(bits=3, group=20)  # the last group is a ragged one


def slow(value):
    return pytest.param(value, marks=pytest.mark.slow)


@pytest.fixture(scope="module")
def params():
    """Biases are not zero, and a few inputs are much larger than the others."""
    leaves = leaf_paths(init(jax.random.key(0), CONFIG))
    rng = np.random.default_rng(1)
    for path, leaf in leaves.items():
        if path.endswith("bias"):
            leaves[path] = jnp.asarray(rng.normal(size=leaf.shape) * 0.1, jnp.float32)
        if path.endswith("_norm/scale"):
            leaves[path] = leaf.at[..., :2].set(6.0)
    return from_paths(leaves)


def run(params, masks=None, tokens=TOKENS, quantize=None, **changes):
    quantize = QuantizeConfig(**({"grid": INT3} | (quantize or {})))
    settings = {"batch_size": 4, "pattern": "found", "quantize": quantize} | changes
    return prune(params, masks, tokens, CONFIG, PruneConfig(**settings))


def mean_error(rows):
    return np.mean([row["relative_error"] for row in rows])


def check_grids(model, paths=LINEARS):
    """Every matrix lies on its grid, and pruned weights have the code 0."""
    leaves, masks = leaf_paths(model.params), leaf_paths(model.masks)
    assert set(model.grids) == {(p, i) for p in paths for i in range(CONFIG.n_layers)}
    for (path, layer), grid in model.grids.items():
        kernel = leaves[path][layer]
        groups = grid.config.groups(kernel.shape[0])
        assert grid.scales.shape == (groups, kernel.shape[1])
        np.testing.assert_array_equal(
            quant.round_to_grid(kernel, grid, axis=-2), kernel
        )
        if masks[path] is not None:
            assert not np.asarray(kernel)[~np.asarray(masks[path][layer])].any()


@pytest.fixture(scope="module")
def rounded(params):
    return {method: run(params, quantize={"method": method}) for method in METHODS}


METHODS = ("nearest", "gptq")


@pytest.mark.parametrize("method", METHODS)
def test_rounded_matrices_lie_on_their_grids(rounded, method):
    model = rounded[method]
    check_grids(model)
    assert [row["pattern"] for row in model.rows] == ["dense"] * 14
    expected = quant.storage_bits(INT3, 32)
    assert model.rows[0]["bits"] == pytest.approx(expected)


def test_nearest_is_each_weight_alone(params, rounded):
    leaves = leaf_paths(params)
    for path in LINEARS:
        grid = quant.fit(leaves[path], INT3, axis=-2)
        expected = quant.round_to_grid(leaves[path], grid, axis=-2)
        found = leaf_paths(rounded["nearest"].params)[path]
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-7)


def test_gptq_and_the_search_lose_less(params, rounded):
    nearest, gptq = (mean_error(rounded[method].rows) for method in METHODS)
    assert gptq < 0.8 * nearest
    clipped = run(params, quantize={"method": "nearest", "clip": "search"})
    check_grids(clipped)
    assert mean_error(clipped.rows) < nearest
    logits = [
        forward(p, TOKENS, CONFIG)
        for p in (params, *(rounded[method].params for method in METHODS))
    ]
    nearest, gptq = (float(jnp.mean((y - logits[0]) ** 2)) for y in logits[1:])
    assert gptq < nearest


@pytest.mark.parametrize(
    "pattern",
    [
        "8:16",
        "group:8@0.5",
        *(slow("2:4"), slow("unstructured@0.6"), slow("block:16x8@0.5")),
    ],
)
def test_a_pattern_is_pruned_and_rounded_in_one_solve(params, pattern):
    name, _, sparsity = pattern.partition("@")
    settings = {"pattern": name, "sparsity": float(sparsity or 0.5)}
    joint = run(params, **settings)
    check_grids(joint)
    chosen = parse(name, settings["sparsity"])
    for mask in leaf_paths(joint.masks).values():
        if mask is not None:
            kept = to_matrix(mask)
            np.testing.assert_array_equal(chosen.project(kept * 1.0), kept)
    after = run(params, quantize={"method": "nearest"}, **settings)
    assert mean_error(joint.rows) < mean_error(after.rows)
    assert {row["pattern"] for row in joint.rows} == {str(chosen)}


@pytest.mark.parametrize(
    "solver", ["wanda", "sparsegpt_refit", slow("magnitude"), slow("admm")]
)
def test_every_solver_rounds_what_it_keeps(params, solver):
    settings = {"solver": solver, "pattern": "2:4"}
    joint = run(params, **settings)
    check_grids(joint)
    after = run(params, quantize={"method": "nearest"}, **settings)
    assert mean_error(joint.rows) < mean_error(after.rows)
    if solver in ("magnitude", "wanda"):  # whose masks do not depend on the weights
        first = {
            path: mask
            for path, mask in leaf_paths(joint.masks).items()
            if mask is not None
        }
        again = leaf_paths(
            prune(
                params, None, TOKENS, CONFIG, PruneConfig(batch_size=4, **settings)
            ).masks
        )
        path = "layers/attention/q/kernel"
        np.testing.assert_array_equal(first[path][0], again[path][0])


def test_found_masks_are_kept_as_they_are(params):
    half = prune(params, None, TOKENS, CONFIG, PruneConfig(batch_size=4, pattern="2:4"))
    model = run(half.params, half.masks)
    check_grids(model)
    jax.tree.map(np.testing.assert_array_equal, model.masks, half.masks)
    assert {row["pattern"] for row in model.rows} == {"found"}
    assert {row["index_bits"] for row in model.rows} == {1.0}
    bits = quant.storage_bits(INT3, 32, density=0.5, index_bits=1.0)
    assert model.rows[0]["bits"] == pytest.approx(bits)


def test_smoothing_helps_rounded_inputs(params):
    logits = forward(params, TOKENS, CONFIG)

    def error(quantize):
        grid = {"grid": GridConfig(bits=8, group=0), "activations": "static"}
        model = run(params, quantize=grid | quantize)
        activations = quant.Activations(kind="static", scales=model.input_scales)
        whole = quant.round_inputs(model.params, model.grids, activations)
        return float(jnp.mean((forward(whole, TOKENS, CONFIG) - logits) ** 2))

    assert error({"smooth": SmoothQuant(alpha=0.5)}) < error({})


def test_awq_helps_rounding_to_nearest(params):
    options = {"grid": GridConfig(bits=3, group=0), "method": "nearest"}
    plain = run(params, quantize=options)
    scaled = run(params, quantize=options | {"smooth": Awq()})
    assert mean_error(scaled.rows) < mean_error(plain.rows)


def test_what_is_left_out_by_rule_stays_as_it_is(params):
    rules = ("layers/mlp/down/kernel", "layers/1/attention/.*")
    model = run(params, quantize={"leave_out": rules})
    expected = {(p, i) for p in LINEARS for i in range(2)}
    expected -= {("layers/mlp/down/kernel", i) for i in range(2)}
    expected -= {(p, 1) for p in LINEARS if "attention" in p}
    assert set(model.grids) == expected
    for path, index in [
        ("layers/mlp/down/kernel", 0),
        ("layers/attention/o/kernel", 1),
    ]:
        found, kernel = (leaf_paths(p)[path][index] for p in (model.params, params))
        np.testing.assert_array_equal(found, kernel)
    reasons = [row["left_out"] for row in model.rows]
    assert reasons.count("by rule") == 6 and reasons.count(None) == 8
    assert model.rows[0]["bits"] is not None
    (down,) = [r for r in model.rows if r["layer"] == 0 and "down" in r["path"]]
    assert down["bits"] is None and down["relative_error"] == 0


def test_what_is_too_far_off_is_left_out(params, rounded):
    errors = sorted(row["relative_error"] for row in rounded["gptq"].rows)
    bound = errors[len(errors) // 2]
    model = run(params, quantize={"max_error": bound})
    out = [row for row in model.rows if row["left_out"] is not None]
    assert 0 < len(out) < 14 and len(model.grids) == 14 - len(out)
    for row in out:
        assert re.fullmatch(
            rf"rounding adds [0-9.e-]+ to its error, more than {bound:g}",
            row["left_out"],
        )
        assert row["relative_error"] == 0
    # With a pattern, what pruning costs does not count.
    pruned = run(params, pattern="2:4", quantize={"max_error": 0.5})
    assert all(row["left_out"] is None for row in pruned.rows)


def test_outliers_are_kept_beside_the_matrix(params, rounded):
    outliers = Outliers(fraction=0.02)
    model = run(params, quantize={"outliers": outliers})
    check_grids(model)
    assert mean_error(model.rows) < mean_error(rounded["gptq"].rows)
    index = model.adapter["layers/mlp/up/outlier_index"]
    assert index.shape == (2, round(0.02 * 32 * 32)) and index.dtype == jnp.int32
    kernel = leaf_paths(model.params)["layers/mlp/up/kernel"][0]
    assert not np.asarray(to_matrix(kernel)).reshape(-1)[np.asarray(index[0])].any()
    row = model.rows[0]
    assert row["extra_bits"] == pytest.approx(48 * index_count(32, 32) / (32 * 32))
    # What all of it computes is what the errors and the next blocks were measured on.
    logits = forward(params, TOKENS, CONFIG)
    whole = forward(merge(model.params, model.adapter), TOKENS, CONFIG)
    alone = forward(model.params, TOKENS, CONFIG)
    assert float(jnp.mean((whole - logits) ** 2)) < float(
        jnp.mean((alone - logits) ** 2)
    )


def index_count(n_in, n_out):
    return Outliers(fraction=0.02).count(n_in, n_out)


def test_a_low_rank_term_mends_what_was_lost(params, rounded):
    errors = [mean_error(rounded["gptq"].rows)]
    for rank in (0.1, 0.5):
        low_rank = LowRank(rank=rank, grid=GridConfig(bits=4, group=16))
        model = run(params, quantize={"low_rank": low_rank})
        check_grids(model)
        errors.append(mean_error(model.rows))
    assert errors[2] < errors[1] < errors[0]
    factors = {path.rpartition("/")[2] for path in model.adapter}
    assert factors == {"slorb_s", "slorb_x"}
    merged = leaf_paths(merge(model.params, model.adapter))["layers/mlp/up/kernel"][0]
    kernel = leaf_paths(params)["layers/mlp/up/kernel"][0]
    before = leaf_paths(model.params)["layers/mlp/up/kernel"][0]
    assert float(jnp.abs(merged - kernel).mean()) < float(
        jnp.abs(before - kernel).mean()
    )


def test_nearest_needs_no_text(params, rounded):
    model = run(params, tokens=None, quantize={"method": "nearest"})
    check_grids(model)
    jax.tree.map(np.testing.assert_array_equal, model.params, rounded["nearest"].params)
    assert {row["relative_error"] for row in model.rows} == {None}


@pytest.mark.parametrize(
    ("quantize", "sentence"),
    [
        ({}, "method 'gptq' needs calibration tokens"),
        ({"method": "nearest", "clip": "search"}, "clip 'search' needs calibration"),
        ({"method": "nearest", "smooth": Awq()}, "smooth needs calibration"),
        ({"method": "nearest", "activations": "static"}, "'static' needs calibration"),
        ({"method": "nearest", "low_rank": LowRank()}, "low_rank needs calibration"),
        ({"method": "nearest", "outliers": Outliers()}, "outliers needs calibration"),
    ],
)
def test_what_reads_text_says_so(params, quantize, sentence):
    with pytest.raises(InputError, match=re.escape(sentence)):
        run(params, tokens=None, quantize=quantize)


def test_ranges_that_are_not_finite_name_their_matrices(params):
    leaves = leaf_paths(params)
    up = leaves["layers/mlp/up/kernel"]
    broken = from_paths(leaves | {"layers/mlp/up/kernel": up.at[1, 0, 0].set(np.inf)})
    sentence = r"block 1: the inputs of layers/mlp/down/kernel are NaN or infinite"
    smooth = {"smooth": SmoothQuant(), "method": "nearest"}
    with pytest.raises(InputError, match=sentence):
        run(broken, quantize=smooth)


def test_zeros_that_do_not_fit_the_pattern_are_named(params):
    masks = {path: None for path in leaf_paths(params)}
    kernel = leaf_paths(params)["layers/attention/o/kernel"]
    masks["layers/attention/o/kernel"] = (
        jnp.ones_like(kernel, bool).at[1, 8:11, 5].set(False)
    )
    sentence = (
        "block 1, layers/attention/o/kernel: pattern 2:4 keeps 2 of every 4 inputs, "
        "but the zeros found leave 1 in output 5, inputs 8 to 11"
    )
    with pytest.raises(InputError, match=re.escape(sentence)):
        run(params, from_paths(masks), pattern="2:4")
    # Pruning alone goes on from any zeros, as it did.
    config = PruneConfig(batch_size=4, pattern="2:4", solver="magnitude")
    prune(params, from_paths(masks), None, CONFIG, config)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: QuantizeConfig(max_error=-1.0), "quantize.max_error must be >= 0"),
        (lambda: QuantizeConfig(leave_out=("(",)), "is no regular expression"),
        (lambda: SmoothQuant(alpha=1.5), r"smooth.alpha must be in \[0, 1\]"),
        (lambda: Awq(points=1), "smooth.points must be at least 2"),
        (lambda: LowRank(rank=0.0), r"low_rank.rank must be in \(0, 1\]"),
        (lambda: Outliers(fraction=1.0), r"outliers.fraction must be in \(0, 1\)"),
        (lambda: PruneConfig(pattern="found"), "'found' prunes nothing"),
        (
            lambda: PruneConfig(
                pattern="found", nested=False, quantize=QuantizeConfig()
            ),
            "prune.nested is off",
        ),
    ],
)
def test_bad_settings_are_refused(make, sentence):
    with pytest.raises(InputError, match=sentence):
        make()


def test_a_misspelt_rule_is_refused(params):
    with pytest.raises(InputError, match=r"leave_out: 'layers/down' matches"):
        run(params, quantize={"leave_out": ("layers/down",)})


def test_settings_can_be_replaced():
    config = QuantizeConfig(smooth=SmoothQuant())
    assert dataclasses.replace(config, clip="search").smooth == SmoothQuant()
