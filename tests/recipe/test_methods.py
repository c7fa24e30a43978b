"""Stages whose masks move, with teachers and low-rank terms: from recipe to report."""

import dataclasses
import json

import numpy as np
import pytest

from configs import common
from sparse_jax import io
from sparse_jax import recipe as recipe_lib
from sparse_jax.recipe import Comparison, Export, Pretrain, ReportConfig, training
from sparse_jax.schema import build
from sparse_jax.sparsity.adapters import LowRankConfig
from sparse_jax.train import AdaptiveConfig, DistillConfig, PrunedDecayConfig
from sparse_jax.tree import leaf_paths
from sparse_jax.types import InputError
from tests.recipe import helpers

AST = Pretrain(
    parent="dense",
    steps=4,
    peak=1e-2,
    teacher="dense",
    distill=DistillConfig(),
    adaptive=AdaptiveConfig(pattern="2:4", every=2),
    pruned_decay=PrunedDecayConfig(rule="ast", peak=1e-3, rise_steps=2),
    low_rank=LowRankConfig(group=16),
)
CAST = dataclasses.replace(
    AST,
    adaptive=AdaptiveConfig(pattern="2:4", every=2, mode="dense"),
    pruned_decay=PrunedDecayConfig(rule="cast", peak=1e-3),
    low_rank=None,
    learned_scales=True,
    distill=DistillConfig(top_k=8),
)
STAGES = {
    "dense": Pretrain(),
    "dense_control": Pretrain(parent="dense", steps=4),
    "ast_slorb_2of4": AST,
    "cast_2of4": CAST,
    "export": Export(parent="ast_slorb_2of4"),
}


@pytest.fixture(scope="module")
def moving(recipe):
    question = Comparison(question="AST or CAST?", method="ast_slorb", baseline="cast")
    return dataclasses.replace(
        recipe,
        name="moving",
        stages=STAGES,
        order=tuple(STAGES),
        final="cast_2of4",
        report=ReportConfig(comparisons=(question,)),
    )


@pytest.fixture(scope="module")
def done(moving, tmp_path_factory):
    directory = tmp_path_factory.mktemp("moving") / "run"
    recipe_lib.run(moving, directory, quiet=True)
    return directory


def test_it_survives_the_way_through_flags(moving):
    assert build(recipe_lib.Recipe, common.to_config(moving).to_dict()) == moving


@pytest.mark.parametrize("name", ["ast_slorb_2of4", "cast_2of4"])
def test_final_models_are_in_the_pattern(done, name):
    model = io.resolve(done / name)
    weights, found = leaf_paths(model.params), 0
    for path, mask in leaf_paths(model.masks).items():
        if mask is None:
            continue
        groups = np.asarray(mask).swapaxes(-1, -2).reshape(-1, 4)
        assert (groups.sum(1) == 2).all()
        assert not np.asarray(weights[path])[~np.asarray(mask)].any()
        found += 1
    assert found == 7
    assert (model.adapter is None) == (name == "cast_2of4")


def test_the_low_rank_term_is_evaluated_counted_and_exported(done):
    row = json.loads((done / "ast_slorb_2of4" / "result.json").read_text())
    model = io.resolve(done / "ast_slorb_2of4")
    assert row["adapter_parameters"] == sum(a.size for a in model.adapter.values())
    assert row["bits_per_weight"] == 16 * 0.5 + 1 + 16 / 16
    exported = io.resolve(done / "export")
    for path, factor in model.adapter.items():
        assert (exported.adapter[path] == factor).all()
    bare = dataclasses.replace(model, adapter=None)
    moved = leaf_paths(model.effective_params)["layers/mlp/up/kernel"]
    assert not np.allclose(moved, leaf_paths(bare.params)["layers/mlp/up/kernel"])


def test_the_cached_teacher_gives_the_same_run_again(done, moving, tmp_path):
    (cache,) = (done / "teachers").iterdir()
    assert len(list(cache.glob("0*"))) == 4
    distill = dataclasses.replace(CAST.distill, cache_dir=str(cache))
    again = helpers.replace_stage(moving, "cast_2of4", distill=distill)
    recipe_lib.run(again, tmp_path / "run", quiet=True)
    rows = [
        json.loads((folder / "cast_2of4" / "result.json").read_text())["domains"]
        for folder in (done, tmp_path / "run")
    ]
    assert rows[0] == rows[1]


def test_another_teachers_cache_is_refused(done, moving, tmp_path, monkeypatch):
    (cache,) = (done / "teachers").iterdir()
    distill = dataclasses.replace(CAST.distill, cache_dir=str(cache))
    other = helpers.replace_stage(moving, "cast_2of4", distill=distill)
    digest = training._identity

    def changed(*arguments):
        return digest(*arguments) | {"teacher": "0" * 64}

    monkeypatch.setattr(training, "_identity", changed)
    with pytest.raises(InputError, match="was made by another teacher: teacher is"):
        recipe_lib.run(other, tmp_path / "run", quiet=True)


def test_the_report_answers_its_question(done):
    report = json.loads((done / "report.json").read_text())
    rows = {row["name"]: row for row in report["models"]}
    assert rows["ast_slorb_2of4"]["bits_per_weight"] == 10.0
    assert report["comparison"]["answers"][0]["question"] == "AST or CAST?"
    assert (done / "masks.png").exists() and (done / "distill.png").exists()


def test_a_parent_without_masks_has_no_sparsity_to_take_over(moving, done):
    """As a model read from files may turn out to be."""
    masks = AdaptiveConfig(pattern="unstructured", sparsity=None)
    stage = dataclasses.replace(AST, adaptive=masks)
    with pytest.raises(InputError, match="but the model of dense has no masks"):
        training.begin(stage, moving, done, 0)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"teacher": None}, "teacher and distill belong together"),
        ({"adaptive": None}, "pruned_decay pulls weights whose masks may still change"),
        (
            {"adaptive": AdaptiveConfig(mode="dense")},
            "low_rank stands in for pruned weights, which adaptive.mode 'dense'",
        ),
    ],
)
def test_contradictions_are_named(fields, message):
    with pytest.raises(InputError, match=message):
        dataclasses.replace(AST, **fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"teacher": "nobody"}, "stages.ast_slorb_2of4.teacher must be an enabled"),
        (
            {"pruned_decay": PrunedDecayConfig(rule="ast", peak=1.0, rise_steps=9)},
            "pruned_decay.rise_steps = 9 ends after training, which has 4 steps",
        ),
        (
            {"adaptive": AdaptiveConfig(pattern="2:5")},
            r"pattern 2:5 needs the input dimension to be a multiple of 5, found 32",
        ),
        (
            {"adaptive": AdaptiveConfig(ramp_steps=9)},
            "adaptive.ramp_steps = 9 ends after the masks' last step, 3",
        ),
        (
            {"adaptive": AdaptiveConfig(pattern="unstructured", sparsity=None)},
            "adaptive.sparsity None takes over .* but dense makes no masks",
        ),
    ],
)
def test_bad_stages_are_refused_before_any_work(moving, tmp_path, fields, message):
    with pytest.raises(InputError, match=message):
        bad = helpers.replace_stage(moving, "ast_slorb_2of4", **fields)
        recipe_lib.run(bad, tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()
