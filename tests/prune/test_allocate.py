import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparse_jax import schema
from sparse_jax.models import INPUTS, LlamaConfig, abstract_params, embed
from sparse_jax.prune import PruneConfig
from sparse_jax.prune.activations import Activations
from sparse_jax.prune.allocate import (
    SPREADS,
    AllocationConfig,
    allocate,
    budget,
    count_units,
    exact_sparsity,
)
from sparse_jax.prune.blockwise import run_block, take_layer
from sparse_jax.prune.sensitivity import measure
from sparse_jax.sparsity import Block, Group, Unstructured
from sparse_jax.tree import leaf_paths
from sparse_jax.types import InputError

CONFIG = LlamaConfig(
    vocab_size=64,
    d_model=32,
    d_ff=32,
    n_layers=2,
    n_heads=4,
    n_kv_heads=2,
    max_seq_len=32,
    tie_embeddings=True,
)
TOKENS = jnp.asarray(np.random.default_rng(0).integers(0, 64, (8, 16)), jnp.int32)
PATHS = [f"layers/{name}/kernel" for names in INPUTS.values() for name in names]


@pytest.fixture(scope="module")
def blocks():
    """(layer params, inputs) of every dense block."""
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: jnp.asarray(rng.normal(0, 0.2, leaf.shape), jnp.float32),
        abstract_params(CONFIG),
    )
    inputs, found = Activations([embed(params, TOKENS)]), []
    for index in range(CONFIG.n_layers):
        layer = take_layer(params["layers"], index)
        found.append((layer, Activations(list(inputs))))
        inputs.update(lambda x_BTD, layer=layer: run_block(layer, x_BTD, CONFIG))
    return found


def measure_blocks(blocks, kind, *, pattern="unstructured", priors=None, **changes):
    allocation = AllocationConfig(kind=kind)
    config = PruneConfig(allocation=allocation, pattern=pattern, **changes)
    (_, parsed), *_ = config.pattern_rules()
    patterns = dict.fromkeys(PATHS, parsed)
    return [
        measure(layer, inputs, patterns, priors or {}, CONFIG, config)
        for layer, inputs in blocks
    ]


@pytest.fixture(scope="module")
def measured(blocks):
    """kind -> rows by block."""
    kinds = ("owl", "error", "output")
    return {kind: measure_blocks(blocks, kind, solver="wanda") for kind in kinds}


def random_blocks(seed=0):
    """Rows of three blocks of two matrices, the second block with one alone."""
    rng = np.random.default_rng(seed)

    def row(path, units):
        sparsities = np.linspace(0.3, 0.9, 5)
        errors = np.exp(rng.uniform(4, 8) * sparsities) * rng.uniform(0.001, 0.01)
        return {
            "path": path,
            "units": units,
            "dead": 0,
            "outliers": int(rng.integers(0, units // 10)),
            "sparsities": sparsities.tolist(),
            "errors": errors.tolist(),
            "gain": rng.uniform(0.8, 1.5),
        }

    return [[row("a", 1037), row("b", 411)], [row("a", 1037)], [row("b", 411)]]


def counts(blocks, chosen):
    rows = [row for block in blocks for row in block]
    values = [value for block in chosen for value in block.values()]
    return np.array(
        [int(row["units"] * s) for row, s in zip(rows, values, strict=True)]
    )


@pytest.mark.parametrize("kind", sorted(SPREADS))
@pytest.mark.parametrize("target", [0.0, 0.37, 0.5, 0.8, 0.97])
def test_the_budget_is_met_exactly(kind, target):
    blocks, config = random_blocks(), AllocationConfig(kind=kind)
    chosen = allocate(blocks, target, config)
    assert [list(block) for block in chosen] == [["a", "b"], ["a"], ["b"]]
    rows = [row for block in blocks for row in block]
    uniform = [int(row["units"] * target) for row in rows]
    assert counts(blocks, chosen).sum() == sum(uniform)
    for row, count in zip(rows, counts(blocks, chosen), strict=True):
        assert 0 <= count < row["units"]
        if kind != "owl":
            assert abs(count / row["units"] - target) <= SPREADS[kind] + 2e-3
    if kind == "uniform":
        assert counts(blocks, chosen).tolist() == uniform


def test_owl_follows_the_published_formula():
    """Densities 1 - S in the mean, 2 lambda apart, linear in the share of outliers."""
    shares = [0.02, 0.08, 0.04, 0.06]
    blocks = [
        [
            {"path": path, "units": units, "dead": 0, "outliers": int(share * units)}
            for path, units in (("a", 100_000), ("b", 50_000))
        ]
        for share in shares
    ]
    chosen = allocate(blocks, 0.7, AllocationConfig(kind="owl"))
    density = 2 * 0.08 * (np.array(shares) - 0.02) / (0.08 - 0.02)
    expected = 1 - (density - density.mean() + 1 - 0.7)
    for block, sparsity in zip(chosen, expected, strict=True):
        assert list(block.values()) == pytest.approx([sparsity] * 2, abs=2e-5)
    wider = allocate(blocks, 0.7, AllocationConfig(kind="owl", spread=0.12))
    assert np.ptp([block["a"] for block in wider]) == pytest.approx(0.24, abs=2e-5)
    for block in blocks:
        for row in block:
            row["outliers"] = row["units"] // 50
    even = allocate(blocks, 0.7, AllocationConfig(kind="owl"))
    assert {round(s, 4) for block in even for s in block.values()} == {0.7}


def test_the_least_error_is_found():
    """Against every allocation of a small problem, and against uniform."""
    rng = np.random.default_rng(0)
    config = AllocationConfig(kind="error", spread=0.4)
    for _ in range(5):
        slopes, scales = rng.uniform(3, 8, 3), rng.uniform(0.5, 2, 3)
        grid = np.linspace(0.1, 0.875, 400)
        blocks = [
            [
                {
                    "path": "a",
                    "units": 40,
                    "dead": 0,
                    "sparsities": grid.tolist(),
                    "errors": (scale * np.exp(slope * grid)).tolist(),
                }
            ]
            for slope, scale in zip(slopes, scales, strict=True)
        ]

        def error(pruned, slopes=slopes, scales=scales):
            return (scales * np.exp(slopes * np.array(pruned) / 40)).sum()

        found = error(counts(blocks, allocate(blocks, 0.5, config)))
        low, high = config.limits(blocks[0][0], 0.5)
        best = min(
            error((a, b, 60 - a - b))
            for a in range(low, high + 1)
            for b in range(low, high + 1)
            if low <= 60 - a - b <= high
        )
        assert best <= found <= best * 1.002
        assert found < error((20, 20, 20))


def test_later_gains_multiply_the_errors():
    blocks = random_blocks()
    for block in blocks:
        for row in block:
            row |= {"errors": [0.01, 0.02, 0.05, 0.1, 0.2], "units": 1000, "gain": 2.0}
    even = allocate(blocks, 0.6, AllocationConfig(kind="error"))
    assert {round(s, 2) for block in even for s in block.values()} == {0.6}
    first, middle, last = allocate(blocks, 0.6, AllocationConfig(kind="output"))
    assert first["a"] == pytest.approx(first["b"], abs=0.01)
    assert first["a"] < middle["a"] < last["b"]


def test_the_measured_error_falls(blocks, measured):
    """Solved at the allocated sparsities, the summed error is less than uniform's."""

    def summed(chosen):
        found = [
            measure(
                layer,
                inputs,
                {path: Unstructured(s) for path, s in block.items()},
                {},
                CONFIG,
                exactly,
            )
            for (layer, inputs), block in zip(blocks, chosen, strict=True)
        ]
        return sum(row["errors"][0] for rows in found for row in rows)

    alone = AllocationConfig(kind="error", spread=0.0)
    exactly = PruneConfig(solver="wanda", allocation=alone)
    chosen = allocate(measured["error"], 0.5, AllocationConfig(kind="error"))
    uniform = [dict.fromkeys(PATHS, 0.5)] * 2
    total = budget([row for block in measured["error"] for row in block], 0.5, ERROR)
    assert counts(measured["error"], chosen).sum() == total
    assert summed(chosen) < 0.95 * summed(uniform)


ERROR = AllocationConfig(kind="error")


def test_rows_say_what_was_measured(measured):
    for kind, found in measured.items():
        for block in found:
            assert [row["path"] for row in block] == PATHS
            for row in block:
                assert row["dead"] == 0
                if kind == "owl":
                    assert 0 <= row["outliers"] < row["units"] / 5
                else:
                    assert len(row["errors"]) == len(row["sparsities"]) == 3
                    assert row["sparsities"][1] == pytest.approx(0.5, abs=1e-3)
                    assert row["errors"] == sorted(row["errors"])
                    assert 0 < row["errors"][0] < row["errors"][-1] < 1
    gains = [{row["gain"] for row in block} for block in measured["output"]]
    assert all(len(gain) == 1 and 0.1 < min(gain) < 10 for gain in gains)


def test_iterative_solvers_are_measured_by_sparsegpt(blocks):
    layer, inputs = blocks[0]
    (path,) = patterns = {"layers/attention/o/kernel": Unstructured(0.5)}
    rows = {}
    for solver in ("sparsegpt", "admm"):
        config = PruneConfig(solver=solver, allocation=AllocationConfig(kind="output"))
        rows[solver] = measure(layer, inputs, patterns, {}, CONFIG, config)
    assert rows["admm"] == rows["sparsegpt"]
    assert [row["path"] for row in rows["admm"]] == [path]


def test_activations_that_are_not_finite_are_named(blocks):
    layer, inputs = blocks[0]
    broken = Activations([x_BTD * jnp.inf for x_BTD in inputs])
    patterns = {"layers/attention/o/kernel": Unstructured(0.5)}
    for kind in ("owl", "output"):
        config = PruneConfig(allocation=AllocationConfig(kind=kind))
        with pytest.raises(InputError, match="NaN or infinite"):
            measure(layer, broken, patterns, {}, CONFIG, config)


def test_owl_counts_outliers_over_the_block(blocks, measured):
    layer, inputs = blocks[0]
    leaves = leaf_paths({"layers": layer})
    x_TD = np.asarray(next(iter(inputs)), np.float64).reshape(-1, 32)
    norm = np.asarray(leaves["layers/attention_norm/scale"], np.float64)
    x_TD = x_TD / np.sqrt((x_TD**2).mean(-1, keepdims=True) + 1e-5) * norm
    scale = np.sqrt((x_TD**2).sum(0))
    patterns = dict.fromkeys(PATHS[:3], Unstructured(0.5))
    config = PruneConfig(allocation=AllocationConfig(kind="owl", outlier=2.0))
    rows = measure(layer, inputs, patterns, {}, CONFIG, config)
    score = [
        np.abs(np.asarray(leaves[path], np.float64)) * scale[:, None]
        for path in PATHS[:3]
    ]
    mean = np.concatenate([s.ravel() for s in score]).mean()
    assert [row["outliers"] for row in rows] == [
        int((s > 2 * mean).sum()) for s in score
    ]


@pytest.mark.parametrize("pattern", ["group:4", "block:4x4"])
def test_units_of_other_patterns(blocks, pattern):
    found = measure_blocks(blocks[:1], "error", pattern=pattern, solver="magnitude")
    size = 4 if pattern == "group:4" else 16
    assert [row["units"] for row in found[0]][:2] == [32 * 32 // size, 32 * 16 // size]
    chosen = allocate(found, 0.5, ERROR)
    assert counts(found, chosen).sum() == sum(r["units"] // 2 for r in found[0])


def test_prior_masks_bound_the_sparsity_from_below(blocks):
    down = "layers/mlp/down/kernel"
    mask = jnp.arange(32 * 32).reshape(32, 32) % 4 == 0  # three in four are gone
    options = {"priors": {down: mask}, "solver": "magnitude"}
    found = measure_blocks(blocks[:1], "error", **options)
    row = found[0][-1]
    assert (row["path"], row["dead"]) == (down, 32 * 24)
    assert row["errors"][0] == 0.0
    assert row["sparsities"][0] == 0.75
    chosen = allocate(found, 0.5, AllocationConfig(kind="error", spread=0.3))
    assert chosen[0][down] >= 0.75
    assert counts(found, chosen).sum() == budget(found[0], 0.5, ERROR)
    with pytest.raises(InputError, match=r"'error': sparsity 0.1 prunes .* already"):
        allocate(found, 0.1, ERROR)


def test_exact_sparsities():
    for units in (7, 100, 1037, 4096 * 11008):
        for count in {0, 1, units // 3, units // 2 + 1, units - 1}:
            assert int(units * exact_sparsity(count, units)) == count


def test_units_are_counted():
    prior = jnp.ones((4, 8), bool).at[:2, :4].set(False)
    assert count_units(Unstructured(0.5), (4, 8), prior) == {"units": 32, "dead": 8}
    assert count_units(Group(4, 0.5), (4, 8), prior) == {"units": 8, "dead": 2}
    assert count_units(Block(4, 4, 0.5), (4, 8), prior) == {"units": 2, "dead": 0}


def test_the_config_is_plain_data():
    config = AllocationConfig(kind="owl", spread=0.1)
    values = schema.to_dict(config)
    assert values == dataclasses.asdict(config)
    assert schema.build(AllocationConfig, values) == config


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"kind": "best"},
            "'best' is not known; .*'error', 'output', 'owl'",
        ),
        ({"kind": "owl", "spread": 1.0}, r"allocation.spread must be in \[0, 1\)"),
        ({"kind": "owl", "spread": float("nan")}, "allocation.spread"),
        ({"spread": 0.1}, "no meaning for allocation 'uniform'"),
        ({"outlier": 0.0}, "allocation.outlier must be > 0"),
        ({"points": 1}, "allocation.points must be at least 2"),
    ],
)
def test_bad_config_is_named(changes, message):
    with pytest.raises(InputError, match=message):
        AllocationConfig(**changes)


def test_nothing_to_choose_is_an_error():
    with pytest.raises(InputError, match=r"'owl' needs .* N:M, .* use .*'uniform'"):
        allocate([[], []], 0.5, AllocationConfig(kind="owl"))
