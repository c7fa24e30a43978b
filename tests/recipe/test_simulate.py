"""One field of the config adds a simulated machine to the report."""

import dataclasses
import json

import pytest

from sparse_jax import dataflow
from sparse_jax import recipe as recipe_lib
from sparse_jax.types import InputError
from tests.recipe import helpers

PAPER = recipe_lib.ReportConfig(machine="cs3", scale_to="tiny")


@pytest.fixture
def small_machine(monkeypatch):
    """A small grid with one uncertain constant, which takes a moment to simulate."""
    small = dataflow.machine("cs3").replace(grid_rows=16, grid_columns=16)
    known = {
        name: dataclasses.replace(constant, low=constant.value, high=constant.value)
        for name, constant in small.constants().items()
        if name != "row_cycles"
    }
    monkeypatch.setitem(dataflow.MACHINES, "cs3", dataclasses.replace(small, **known))


def test_a_finished_run_gains_the_tables(recipe, copy, small_machine):
    before = json.loads((copy / "report.json").read_text())
    assert before["dataflow"] == []
    assert "machine that streams weights" not in (copy / "report.md").read_text()
    finished = {p: p.stat().st_mtime_ns for p in copy.glob("*/result.json")}
    recipe_lib.run(dataclasses.replace(recipe, report=PAPER), copy, quiet=True)
    assert finished == {p: p.stat().st_mtime_ns for p in copy.glob("*/result.json")}
    after = json.loads((copy / "report.json").read_text())
    own, scaled = after["dataflow"]
    assert (own["model"], scaled["model"]) == (recipe.final, "tiny")
    assert (own["rows"][0]["masks"], scaled["rows"][0]["masks"]) == (
        "model",
        "sparsegpt",
    )
    pruned = next(row for row in after["models"] if row["name"] == recipe.final)
    for numbers in (own, scaled):
        (row,) = numbers["rows"]
        assert row["sparsity"] == pytest.approx(pruned["sparsity_pruned"], abs=1e-3)
        assert row["step"] > 1
        text = (copy / "report.md").read_text()
        assert f"{row['step']:.2f} times as fast" in text


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"machine": "cs9"}, "machine 'cs9' is unknown; choose one of"),
        ({"machine": "cs3", "scale_to": "8b"}, "model size '8b' is unknown"),
    ],
)
def test_what_does_not_exist_is_refused_before_any_training(
    recipe, tmp_path, fields, message
):
    broken = helpers.replace(recipe, "report", **fields)
    with pytest.raises(InputError, match=message):
        recipe_lib.run(broken, tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()
