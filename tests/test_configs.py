"""Every experiment file builds, round-trips through flags, and keeps its promises."""

import dataclasses
import importlib
import math
import pathlib

import jax
import pytest

from configs import common
from sparse_jax import mesh, models, schema
from sparse_jax.recipe import Recipe
from sparse_jax.types import InputError

FILES = sorted(
    p.stem for p in (pathlib.Path(__file__).parents[1] / "configs").glob("sparse[0-9]*")
)


def load(name, variant=None) -> Recipe:
    config = importlib.import_module(f"configs.{name}").get_config(variant)
    return schema.build(Recipe, config.to_dict())


@pytest.mark.parametrize("variant", [None, "smoke", "llama2_7b"])
@pytest.mark.parametrize("name", FILES)
def test_it_survives_the_way_through_flags(name, variant):
    recipe = load(name, variant)
    assert schema.build(Recipe, common.to_config(recipe).to_dict()) == recipe
    assert recipe.order[0] == "dense" and recipe.final.startswith("trained_")


def test_fields_that_are_none_can_be_set_from_the_command_line():
    config = importlib.import_module("configs.sparse70").get_config()
    config.init = "some/dir"
    config.stages.trained_70.warmup_steps = 7
    config.train.optimizer.clip_norm = 0.5
    recipe = schema.build(Recipe, config.to_dict())
    assert (recipe.init, recipe.stages["trained_70"].warmup_steps) == ("some/dir", 7)


@pytest.mark.parametrize("name", FILES)
def test_the_default_run_is_as_large_as_promised(name):
    """At most 0.8M parameters, inputs divisible by 16, 1.8M or 2M training tokens."""
    recipe = load(name)
    sizes = jax.tree.map(lambda leaf: leaf.size, models.abstract_params(recipe.model))
    assert sum(jax.tree.leaves(sizes)) <= 800_000
    assert recipe.model.d_model % 16 == 0 and recipe.model.d_ff % 16 == 0
    chain = [n for n in recipe.order if n == "dense" or n.startswith("trained")]
    steps = [recipe.train_config(recipe.stages[n]).steps for n in chain]
    floor = 2_000_000 if name == "sparse70" else 1_800_000
    assert sum(steps) * recipe.train.tokens_per_step >= floor


@pytest.mark.parametrize("name", FILES)
def test_the_control_repeats_the_sparse_stages(name):
    recipe = load(name)
    stages = recipe.enabled_stages()
    trained = [stages[n] for n in recipe.order if n.startswith("trained_")]
    controls = [stages[n] for n in recipe.order if n.startswith("dense_control")]
    assert len(trained) == len(controls) > 0
    for sparse, control in zip(trained, controls, strict=True):
        # The same in everything but the tuned peak learning rate.
        same_peak = dataclasses.replace(control, peak=sparse.peak)
        assert recipe.train_config(sparse) == recipe.train_config(same_peak)


@pytest.mark.parametrize("size", ["llama2_7b", "llama2_70b"])
def test_the_pod_runs_fit_their_mesh_and_survive_flags(size):
    recipe = load("sparse70", size)
    assert schema.build(Recipe, common.to_config(recipe).to_dict()) == recipe
    devices = math.prod(dataclasses.astuple(recipe.mesh))
    train = recipe.train
    needs = mesh.batch_needs(train.batch_size, train.accumulate)
    mesh.check(recipe.mesh, devices, needs | recipe.model.mesh_needs)
    assert train.tokens_per_step == 1024 * 4096
    # One row per chip and micro-batch: the least memory that keeps every chip busy.
    assert train.batch_size == devices * train.accumulate


def test_the_papers_run_reads_the_papers_tokens():
    recipe = load("sparse70", "llama2_7b")
    tokens = {
        name: recipe.train_config(recipe.stages[name]).steps
        * recipe.train.tokens_per_step
        for name in ("trained_50", "trained_70")
    }
    assert tokens["trained_50"] == pytest.approx(45e9, rel=1e-3)
    assert tokens["trained_70"] == pytest.approx(100e9, rel=1e-3)
    schedule = recipe.train_config(recipe.stages["trained_70"]).schedule
    assert (schedule.peak, schedule.warmup_steps, schedule.final_ratio) == (3e-4, 0, 0)


def test_the_small_dense_model_has_as_many_parameters_as_the_sparse_one_non_zeros():
    recipe = load("sparse70")

    def count(model):
        shapes = models.abstract_params(model)
        return sum(leaf.size for leaf in jax.tree.leaves(shapes))

    layer = jax.tree.leaves(models.abstract_params(recipe.model)["layers"])
    linears = sum(leaf.size for leaf in layer if len(leaf.shape) == 3)
    kept = count(recipe.model) - 0.7 * linears
    small = recipe.stages["small_dense"]
    assert not small.enabled
    assert count(small.model) == pytest.approx(kept, rel=0.02)


def test_an_unknown_variant_is_named():
    with pytest.raises(InputError, match="no variant 'huge'"):
        load("sparse70", "huge")
