"""A whole recipe on a tiny model: its files, its numbers, its honest control."""

import dataclasses
import importlib
import json
import time

import numpy as np
import pytest

from configs import common
from sparse_jax import io, train
from sparse_jax import recipe as recipe_lib
from sparse_jax.tree import leaf_paths
from tests.recipe import helpers

run_lib = importlib.import_module("sparse_jax.recipe.run")  # `run` is its function


def report_of(directory):
    return json.loads((directory / "report.json").read_text())


def test_every_stage_leaves_its_files(finished):
    for name in helpers.STAGES:
        stage = json.loads((finished / name / "stage.json").read_text())
        result = json.loads((finished / name / "result.json").read_text())
        assert stage["kind"] == result["kind"] and result["name"] == name
        assert (finished / name / "model").is_dir() == (name != "one_shot")
    for name in ("dense", "trained_50", "trained_70", "dense_control"):
        assert (finished / name / "checkpoints").is_dir()
        assert list((finished / name / "tensorboard").iterdir())
        rows = train.read_metrics(finished / name)
        steps = 5 if name == "dense" else 4
        assert [row["step"] for row in rows] == list(range(1, steps + 1))
        assert {"loss", "tokens", "learning_rate", "grad_norm"} <= {*rows[0]}
    for name in ("report.md", "loss.png", "gap.png", "sparsity.png"):
        assert (finished / name).stat().st_size > 500
    assert not [p for p in finished.rglob(".*") if p.name != ".lock"]


def test_the_report_has_every_model_and_number(finished):
    report = report_of(finished)
    assert [row["name"] for row in report["models"]] == list(helpers.MODELS)
    sparsity = dict(zip(helpers.MODELS, (0, 0.5, 0.5, 0.7, 0.7, 0, 0), strict=True))
    tokens = dict(zip(helpers.MODELS, (320, 320, 576, 576, 832, 576, 832), strict=True))
    for row in report["models"]:
        assert row["sparsity_pruned"] == pytest.approx(sparsity[row["name"]], abs=1e-3)
        assert row["tokens"] == tokens[row["name"]]
        assert [*row["domains"]] == ["code", "prose"]
        for numbers in row["domains"].values():
            assert {"loss", "perplexity", "bits_per_byte"} <= {*numbers}
            assert numbers["perplexity"] == pytest.approx(np.exp(numbers["loss"]))
            assert (numbers["window"], numbers["split"]) == (32, "heldout")
        assert 0 <= row["sparsity_total"] <= row["sparsity_pruned"]
    trained = report["models"][4]
    assert trained["gap"]["code"] == pytest.approx(
        trained["domains"]["code"]["loss"]
        / report["models"][6]["domains"]["code"]["loss"]
        - 1
    )
    assert (
        trained["training_flops_nonzero"] < trained["training_flops_dense_equivalent"]
    )
    assert [(row["method"], row["sparsity"]) for row in report["one_shot"]] == [
        ("magnitude", 0.5),
        ("sparsegpt", 0.5),
        ("magnitude", 0.7),
        ("sparsegpt", 0.7),
    ]
    assert all({*row["domains"]} == {"code", "prose"} for row in report["one_shot"])
    # The one-shot comparison does what the stage of the same settings does.
    stage = report["models"][1]["domains"]["code"]["loss"]
    assert report["one_shot"][1]["domains"]["code"]["loss"] == stage


def test_masks_are_nested_and_pruned_weights_are_zero(finished):
    first = helpers.masks_of(finished / "one_shot_50")
    second = helpers.masks_of(finished / "one_shot_70")
    assert first.keys() == second.keys() and len(first) == 7
    for path in first:
        assert not np.any(np.asarray(second[path]) & ~np.asarray(first[path])), path
    for name, masks in (("trained_50", first), ("trained_70", second)):
        params = leaf_paths(io.resolve(finished / name).params)
        for path, mask in helpers.masks_of(finished / name).items():
            assert np.array_equal(mask, masks[path])
            assert not np.any(np.asarray(params[path])[~np.asarray(mask)])
    assert io.resolve(finished / "dense_control").masks is None


def test_the_control_sees_the_same_batches_and_rates(finished, recipe, tmp_path):
    def rows(name):
        return [
            (row["step"], row["tokens"], row["learning_rate"])
            for row in train.read_metrics(finished / name)
        ]

    def result(name):
        return json.loads((finished / name / "result.json").read_text())

    for sparse, dense in (
        ("trained_50", "dense_control_50"),
        ("trained_70", "dense_control"),
    ):
        assert rows(sparse) == rows(dense)
        assert result(sparse)["data"] == result(dense)["data"]
    # Data goes on where the stage before ended: 5 + 4 + 4 batches.
    assert [result(n)["data"] for n in ("dense", "trained_50", "trained_70")] == [
        5,
        9,
        13,
    ]


def test_a_dense_chain_equals_its_control_bit_for_bit(recipe, tmp_path):
    """At sparsity 0 the sparse chain does exactly what the control does."""
    nothing = recipe
    for name in ("one_shot_50", "one_shot_70"):
        nothing = helpers.replace_stage(nothing, name, sparsity=0.0, solver="magnitude")
    nothing = helpers.replace_stage(nothing, "one_shot", enabled=False)
    report = recipe_lib.run(nothing, tmp_path / "run", quiet=True)
    models = {row["name"]: row for row in report["models"]}
    assert models["trained_70"]["domains"] == models["dense_control"]["domains"]
    assert models["trained_70"]["gap"] == {"code": 0.0, "prose": 0.0}


def test_a_finished_run_is_not_done_again(copy, recipe, monkeypatch):
    def never(*_, **__):
        raise AssertionError("a finished stage ran again")

    monkeypatch.setattr(run_lib, "run_stage", never)
    before, started = report_of(copy), time.time()
    assert recipe_lib.run(recipe, copy, quiet=True) == before
    for name in helpers.STAGES:
        assert (copy / name / "result.json").stat().st_mtime < started


def test_the_run_and_its_export_are_models(finished):
    model = io.resolve(finished)
    assert "trained_70" in model.source
    exported = io.resolve(finished / "export" / "model")
    assert "masks.safetensors" in exported.source
    assert exported.tokenizer.vocab_size <= helpers.MODEL.vocab_size
    assert exported.config == model.config
    loaded = leaf_paths(io.load(finished / "export" / "model"))
    for path, leaf in leaf_paths(model.params).items():
        assert np.array_equal(leaf, loaded[path]), path


def test_a_small_dense_model_is_one_flag_away(corpus, tmp_path):
    whole = common.with_small_dense(helpers.make_recipe(corpus), d_model=16, d_ff=32)
    stages = {
        name: dataclasses.replace(stage, enabled=name in ("dense", "small_dense"))
        for name, stage in whole.stages.items()
    }
    whole = dataclasses.replace(whole, stages=stages, final="small_dense")
    report = recipe_lib.run(whole, tmp_path / "run", quiet=True)
    dense, small = report["models"]
    assert (dense["name"], small["name"]) == ("dense", "small_dense")
    assert small["parameters"] < dense["parameters"]
    assert small["tokens"] == 832  # those of the whole sparse chain
