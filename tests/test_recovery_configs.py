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
    ],
)
def test_it_survives_the_way_through_flags_and_can_run(name, variant):
    recipe = load(name, variant)
    assert schema.build(Recipe, common.to_config(recipe).to_dict()) == recipe
    check(recipe)


def test_every_method_retrains_the_same_parent_for_the_same_batches():
    recipe = load("recovery_ablation")
    found = {}
    for name, stage in recipe.stages.items():
        if name == "dense" or not isinstance(stage, Pretrain):
            continue
        method, seed = name.rsplit("_seed", 1)
        config = recipe.train_config(stage)
        plain = dataclasses.replace(
            config,
            schedule=dataclasses.replace(config.schedule, peak=1.0),
            optimizer=recipe.train.optimizer,
        )
        assert stage.seed == int(seed)
        root = stage.parent if stage.parent == "dense" else "one_shot"
        assert recipe.stages[stage.parent].parent in (None, "dense") and root
        found.setdefault(method, []).append(plain)
    first = found["dense_control"]
    assert all(configs == first for configs in found.values())
    for pattern in ("2of4", "u70"):
        methods = {m.removesuffix(f"_{pattern}") for m in found if pattern in m}
        assert ROWS - {"one_shot"} <= methods
        assert f"one_shot_{pattern}" in recipe.stages
    # A retraining reads a tenth of what its parent has read.
    assert 10 * first[0].steps <= recipe.train.steps


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
