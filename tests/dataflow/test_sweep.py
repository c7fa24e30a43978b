"""The numbers of a simulation, their ranges, and what a report makes of them."""

import json

import pytest

from sparse_jax import dataflow
from sparse_jax.dataflow.sensitivity import Case
from sparse_jax.dataflow.workload import Workload
from sparse_jax.models import LlamaConfig
from sparse_jax.report import dataflow_files, dataflow_summary
from sparse_jax.types import InputError

MODEL = LlamaConfig(vocab_size=64, d_model=48, d_ff=80, n_layers=2, n_heads=2)
MACHINE = dataflow.machine("cs3").replace(grid_rows=3, grid_columns=12)
WORK = Workload(model=MODEL, batch=4, context=50)
SPARSITIES = (0.0, 0.5, 0.75)


def masks(kind="uniform"):
    return [dataflow.DrawnMasks(kind, sparsity) for sparsity in SPARSITIES]


@pytest.fixture(scope="module")
def numbers():
    shown = []
    found = dataflow.sweep(
        MACHINE, WORK, masks(), progress=lambda *state: shown.append(state)
    )
    total = 1 + 2 * 3 + len(list(MACHINE.uncertain())) + 3
    assert shown == [(done, total) for done in range(1, total + 1)]
    return {"model": "small"} | found


def test_numbers_are_plain_and_repeat(numbers):
    again = {"model": "small"} | dataflow.sweep(MACHINE, WORK, masks())
    assert json.loads(json.dumps(numbers, allow_nan=False)) == json.loads(
        json.dumps(again)
    )
    assert dataflow_files(numbers) == dataflow_files(again)


def test_every_row_is_a_speed_up_over_the_same_dense_step(numbers):
    dense = numbers["dense"]
    for row, sparsity in zip(numbers["rows"], SPARSITIES, strict=True):
        assert row["sparsity"] == pytest.approx(sparsity)
        assert row["ideal"] == pytest.approx(1 / (1 - sparsity))
        assert row["step"] == dense["seconds"] / row["seconds"]
        assert sum(row["causes"].values()) == pytest.approx(row["seconds"])
        assert row["step_ideals"]["kept"] == row["step_ideal"]
        assert row["step_ideals"]["kept"] >= row["step_ideals"]["dense"]
        assert row["matrices_efficiency"] * row["ideal"] == pytest.approx(
            row["matrices"]
        )
        rate = row["tokens_per_second"] * row["seconds"]
        assert rate == pytest.approx(WORK.tokens)
        parts = sum(
            part["seconds"] for part in [*row["by_matrix"]] if "seconds" in part
        )
        matrices = sum(layer["seconds"] for layer in row["by_layer"])
        assert parts == pytest.approx(matrices)
    first = numbers["rows"][0]
    assert (first["step"], first["matrices"]) == (1.0, 1.0)


def test_balance_compares_the_kinds_in_one_layout(numbers):
    for row, balance in zip(numbers["rows"], numbers["balance"], strict=True):
        assert [*balance] == ["sparsity", "uniform", "balanced", "sparsegpt"]
        assert balance["uniform"]["step"] == row["step"]
        assert balance["balanced"]["imbalance"] <= balance["uniform"]["imbalance"]


def test_every_uncertain_constant_is_varied_and_ranges_hold_the_value(numbers):
    found = numbers["sensitivity"]
    names = {row["name"] for row in found["constants"]}
    assert names == {name for name, _ in MACHINE.uncertain()}
    assert found["sparsity"] == pytest.approx(0.75)
    reaches = [row["reach"] for row in found["constants"]]
    assert reaches == sorted(reaches, reverse=True) and reaches[0] > 0
    assert found["used"]["step"] == numbers["rows"][2]["step"]
    for row, ends in zip(numbers["rows"], found["ranges"], strict=True):
        for part in ("matrices", "step"):
            assert ends["least"][part] <= ends["most"][part]
        assert ends["least"]["step"] <= row["step"] + 1e-9
    row = found["constants"][0]
    alone = Case(work=WORK).speedups(
        MACHINE.replace(**{row["name"]: row["high"]}), masks()[2]
    )
    assert alone == row["at_high"]


def test_where_memory_shrinks_the_batch_does(numbers):
    full = dataflow.fit(MACHINE, MODEL, context=50)
    small = MACHINE.replace(sram_reserved_bytes=16_384)
    found = Case(work=full).speedups(small, masks()[2])
    less = dataflow.fit(small, MODEL, context=50)
    assert less.batch < full.batch
    dense = dataflow.simulate(small, less)
    assert found["dense_seconds"] == dense.seconds


def test_a_step_is_hidden_from_its_crossover_on(numbers):
    """At the tokens named, the stream takes as long as the computation."""
    for mask in masks()[1:]:
        slow = MACHINE.replace(stream_in_bytes_per_s=2e9)
        (row,) = dataflow.sweep(slow, WORK, [mask], uncertainty=False)["rows"]
        tokens = row["crossover"]
        step = dataflow.simulate(slow, WORK, mask)
        passes = [p["forward"] for p in step.layers[0].values()]
        busy = sum(p.seconds - p.stream - p.latency for p in passes)
        kept = (1 - mask.sparsity) * WORK.layer_weights * 4
        stream = min(kept, WORK.layer_weights * 2) / 2e9
        assert busy * tokens / WORK.tokens == pytest.approx(stream)
        exposed = sum(p.stream for p in passes)
        assert (exposed > 0) == (tokens > WORK.tokens)


def test_the_report_shows_the_numbers(numbers):
    text = dataflow_summary(numbers)
    files = dataflow_files(numbers)
    assert {*files} == {
        "simulation.json",
        "simulation.md",
        "speedup.png",
        "time.png",
        "sensitivity.png",
    }
    assert json.loads(files["simulation.json"]) == json.loads(json.dumps(numbers))
    page = files["simulation.md"].decode()
    for row in numbers["rows"]:
        for shown in (f"{row['step']:.2f}", f"{row['matrices']:.2f}"):
            assert shown in text and shown in page
    for name, constant in MACHINE.constants().items():
        assert f"| {name} | {constant.value:g} |" in page
    for png in ("speedup.png", "time.png", "sensitivity.png"):
        assert f"({png})" in page and files[png].startswith(b"\x89PNG")


@pytest.mark.parametrize("mode", ["prefill", "decode"])
def test_inference_has_no_weight_gradients(mode):
    work = dataflow.fit(MACHINE, MODEL, batch=2, context=30, mode=mode)
    found = dataflow.sweep(MACHINE, work, masks()[1:], uncertainty=False)
    text = dataflow_summary({"model": "small"} | found)
    assert "dW" not in text and found["work"]["weight_gradient"] is None


def test_a_batch_that_does_not_fit_is_refused():
    full = dataflow.fit(MACHINE, MODEL, context=50)
    more = dataflow.fit(MACHINE.replace(sram_bytes=2e6), MODEL, batch=full.batch + 1)
    with pytest.raises(InputError, match="batch: the activations of"):
        dataflow.sweep(MACHINE, more, masks())
