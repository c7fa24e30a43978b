"""The experiment files of adaptive masks and of the comparison of methods."""

import dataclasses
import importlib
import math

import pytest

from configs import common
from sparse_jax import mesh, schema
from sparse_jax.recipe import Pretrain, Recipe
from sparse_jax.recipe.check import check

ROWS = {
    "one_shot",
    "fixed_mask",
    "fixed_mask_kd",
    "sr_ste",
    "dpf",
    "gradual_magnitude",
    "ast",
    "ast_slorb",
    "cast",
}


def load(name, variant=None) -> Recipe:
    config = importlib.import_module(f"configs.{name}").get_config(variant)
    return schema.build(Recipe, config.to_dict())


@pytest.mark.parametrize(
    ("name", "variant"),
    [
        ("ast_2of4", None),
        ("ast_2of4", "smoke"),
        ("recovery_ablation", None),
        ("recovery_ablation", "full"),
        ("recovery_ablation", "tune"),
        ("recovery_ablation", "smoke"),
        ("sparse70", "best"),
        ("sparse70", "best_tune"),
    ],
)
def test_it_survives_the_way_through_flags_and_can_run(name, variant):
    recipe = load(name, variant)
    assert schema.build(Recipe, common.to_config(recipe).to_dict()) == recipe
    check(recipe)


@pytest.mark.parametrize(
    ("name", "variant", "patterns"),
    [
        ("recovery_ablation", None, ("2of4", "u70")),
        ("recovery_tinystories", None, ("2of4",)),
    ],
)
def test_every_method_is_compared_on_every_pattern(name, variant, patterns):
    recipe = load(name, variant)
    for pattern in patterns:
        rows = {n.split(f"_{pattern}")[0] for n in recipe.stages if f"_{pattern}" in n}
        assert rows >= ROWS
    assert {f"dense_control_seed{seed}" for seed in range(3)} <= set(recipe.stages)


@pytest.mark.parametrize(
    ("name", "variant"),
    [
        ("recovery_ablation", None),
        ("recovery_tinystories", None),
        ("sparse70", "best"),
    ],
)
def test_every_method_retrains_the_same_parent_for_the_same_batches(name, variant):
    recipe = load(name, variant)
    found = {}
    for name, stage in recipe.stages.items():
        if name == "dense" or not isinstance(stage, Pretrain):
            continue
        method, seed = name.rsplit("_seed", 1)
        config = recipe.train_config(stage)
        plain = dataclasses.replace(
            config,
            schedule=dataclasses.replace(config.schedule, peak=1.0, final_ratio=1.0),
            optimizer=recipe.train.optimizer,
        )
        assert stage.seed == int(seed)
        start = recipe.stages[stage.parent]
        assert stage.parent == "dense" or start.parent == "dense"
        found.setdefault(method, []).append(plain)
    first = found["dense_control"]
    assert all(configs == first for configs in found.values())
    if recipe.init is None:  # a retraining reads a tenth of what its parent has read
        assert 10 * first[0].steps <= recipe.train.steps


@pytest.mark.parametrize(
    ("name", "variant", "tuned"),
    [
        ("recovery_ablation", None, "tune"),
        ("recovery_tinystories", None, "tune"),
        ("sparse70", "best", "best_tune"),
    ],
)
def test_every_learning_rate_is_the_middle_of_three_trials(name, variant, tuned):
    trials = {}
    for stage_name, stage in load(name, tuned).stages.items():
        if "_lr" in stage_name:
            trials.setdefault(stage_name.split("_lr")[0], []).append(stage.peak)
    assert all(len(peaks) == 3 for peaks in trials.values())
    compared = load(name, variant).stages
    for group, peaks in trials.items():
        if f"{group}_seed0" in compared:
            assert compared[f"{group}_seed0"].peak == sorted(peaks)[1]


def test_only_the_best_start_spreads_its_sparsity():
    recipe = load("sparse70", "best")
    for name, kind in (("one_shot_u70", "uniform"), ("one_shot_output_u70", "output")):
        assert recipe.prune_config(recipe.stages[name]).allocation.kind == kind
    assert recipe.stages["best_u70_seed0"].parent == "one_shot_output_u70"
    # N:M is even everywhere.
    assert recipe.stages["best_5of16_seed0"].parent == "one_shot_admm_5of16"


def test_the_papers_run_has_the_papers_tokens_and_fits_its_mesh():
    recipe = load("ast_2of4", "llama2_7b")
    assert schema.build(Recipe, common.to_config(recipe).to_dict()) == recipe
    stage = recipe.stages["ast"]
    config = recipe.train_config(stage)
    assert config.steps * config.tokens_per_step == pytest.approx(7.86e9, rel=1e-3)
    decay = config.optimizer.pruned_decay
    assert decay(99) == pytest.approx(2e-6) and decay(14_999) == 6e-5
    needs = mesh.batch_needs(config.batch_size, config.accumulate)
    devices = math.prod(dataclasses.astuple(recipe.mesh))
    mesh.check(recipe.mesh, devices, needs | recipe.model.mesh_needs)
    assert sum(s.weight for s in recipe.data.sources.values()) == pytest.approx(1.0)
