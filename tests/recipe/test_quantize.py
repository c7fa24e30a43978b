"""Stages that round and train on grids, from recipe to a model on its grids."""

import dataclasses
import json
import shutil

import jax.numpy as jnp
import numpy as np
import pytest

from configs import common, gqsa_w4s50
from sparse_jax import io, schema
from sparse_jax import recipe as recipe_lib
from sparse_jax.prune import BlockTrainingConfig, QuantizeConfig
from sparse_jax.quant import GridConfig, from_codes, to_codes
from sparse_jax.recipe import Pretrain, Prune, Recipe
from sparse_jax.sparsity.adapters import LoraConfig, LowRankConfig, QuantTrainConfig
from sparse_jax.train import AdaptiveConfig, DistillConfig
from sparse_jax.tree import leaf_paths
from sparse_jax.types import InputError
from tests.recipe import helpers

GRID = GridConfig(bits=4, group=16, symmetric=False)
PARENT = QuantTrainConfig(grid=GRID, start="parent", train="scales")
ONE_SHOT = Prune(
    parent="dense",
    solver="gqsa",
    pattern="group:16",
    sparsity=0.5,
    quantize=QuantizeConfig(grid=GRID),
)
TUNED = dataclasses.replace(
    ONE_SHOT.quantize, tune=BlockTrainingConfig(epochs=2, learning_rate=3e-3)
)
STAGES = {
    "dense": Pretrain(steps=6),
    "one_shot": ONE_SHOT,
    "stage_one": dataclasses.replace(ONE_SHOT, quantize=TUNED),
    "stage_two": Pretrain(
        parent="stage_one",
        steps=4,
        peak=1e-3,
        teacher="dense",
        distill=DistillConfig(ce_weight=0.5, kl_weight=0.5),
        quantize=PARENT,
    ),
    "adaptive": Pretrain(
        parent="dense",
        steps=4,
        adaptive=AdaptiveConfig(pattern="2:4", every=2),
        quantize=QuantTrainConfig(grid=GridConfig(bits=3, group=16)),
    ),
}
QUANTISED = tuple(STAGES)[1:]


@pytest.fixture(scope="module")
def quantised(recipe):
    return dataclasses.replace(
        recipe, name="grids", stages=STAGES, order=tuple(STAGES), final="stage_two"
    )


@pytest.fixture(scope="module")
def done(quantised, tmp_path_factory):
    directory = tmp_path_factory.mktemp("grids") / "run"
    recipe_lib.run(quantised, directory, quiet=True)
    return directory


def test_it_survives_the_way_through_flags(quantised):
    config = common.to_config(quantised).to_dict()
    assert schema.build(Recipe, config) == quantised


@pytest.mark.parametrize("variant", [None, "smoke", "llama2_7b"])
def test_the_experiment_s_file_builds(variant):
    config = gqsa_w4s50.get_config(variant).to_dict()
    recipe = schema.build(Recipe, config)
    for question in recipe.report.comparisons:
        for method in (question.method, question.baseline):
            assert f"{method}_seed0" in recipe.stages
    two = [stage for name, stage in recipe.stages.items() if "stage_two" in name]
    assert all(stage.quantize.train == "scales" for stage in two)
    assert recipe.final in recipe.stages


@pytest.mark.parametrize("stage", QUANTISED)
def test_what_is_saved_lies_on_its_grids(done, stage):
    found = io.resolve(done / stage)
    leaves, masks = leaf_paths(found.params), leaf_paths(found.masks or {})
    paths = {path for path, _ in found.grids}
    assert len(paths) == 7 and len(found.grids) == 7 * helpers.MODEL.n_layers
    for (path, layer), grid in found.grids.items():
        kernel = leaves[path][layer]
        again = from_codes(to_codes(kernel, grid, axis=-2), grid, axis=-2)
        mask = masks.get(path)
        if mask is not None:
            assert not np.asarray(kernel)[~np.asarray(mask[layer])].any()
            again = jnp.where(mask[layer], again, 0)
        np.testing.assert_array_equal(again, kernel)
    quantize = STAGES[stage].quantize
    assert {grid.config for grid in found.grids.values()} == {quantize.grid}


def test_stages_keep_the_masks_and_the_codes(done):
    models = [io.resolve(done / n) for n in ("one_shot", "stage_one", "stage_two")]
    masks = [leaf_paths(model.masks) for model in models]
    for path, mask in masks[0].items():
        for other in masks[1:]:
            assert (mask is None) == (other[path] is None)
            if mask is not None:
                np.testing.assert_array_equal(mask, other[path])
    one, two = models[1:]
    for (path, layer), grid in one.grids.items():
        codes = [
            to_codes(leaf_paths(m.params)[path][layer], m.grids[path, layer], axis=-2)
            + (8 - m.grids[path, layer].zeros.repeat(16, 0)).astype(jnp.int8)
            for m in (one, two)
        ]
        kept = np.asarray(masks[0][path][layer])
        shifted = grid.zeros.repeat(16, 0) != two.grids[path, layer].zeros.repeat(16, 0)
        same = np.asarray(codes[0] == codes[1])[kept & ~np.asarray(shifted)]
        assert same.all()
    assert any(
        not np.array_equal(grid.scales, two.grids[key].scales)
        for key, grid in one.grids.items()
    )


def test_stage_one_improves_on_one_shot(done):
    result = json.loads((done / "stage_one" / "result.json").read_text())
    for row in result["matrices"]:
        before, after = row["block_error"]
        assert after < 0.95 * before


def test_it_goes_on_where_it_stopped(done, quantised):
    """A run whose last stage is done again ends with the same bits."""
    before = helpers.contents(done)
    recipe_lib.run(quantised, done, quiet=True, restart_from="stage_two")
    after = helpers.contents(done)
    same = [p for p in before if p.startswith("stage_two/model")]
    assert len(same) > 3
    for path in same:
        assert after[path] == before[path], path


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"adaptive": AdaptiveConfig()}, "leave out adaptive, or set it to 'all'"),
        ({"lora": LoraConfig()}, "leave out lora, or set it to 'all'"),
        ({"low_rank": LowRankConfig()}, "leave out low_rank, or set it to 'all'"),
        ({"learned_scales": True}, "leave out learned_scales, or it"),
        ({"parent": None}, "this stage has no parent; set it to 'search'"),
    ],
)
def test_contradictions_are_named(fields, message):
    with pytest.raises(InputError, match=message):
        dataclasses.replace(STAGES["stage_two"], **fields)


@pytest.mark.parametrize(
    ("quantize", "parent", "message"),
    [
        (None, "one_shot", "training would leave its grids; set quantize"),
        (PARENT, "dense", "takes over the parent's grids, but it has none"),
        (
            dataclasses.replace(PARENT, grid=GridConfig(bits=8, group=0)),
            "one_shot",
            r"quantize.grid is GridConfig\(bits=8, .* in layer 0 is GridConfig\(bits=4",
        ),
        (
            QuantTrainConfig(grid=GRID, targets=("layers/nonesuch",)),
            "dense",
            "quantize.targets: 'layers/nonesuch' names none of the matrices",
        ),
    ],
)
def test_a_parent_that_does_not_fit_is_named(
    quantised, done, tmp_path, quantize, parent, message
):
    run = shutil.copytree(done, tmp_path / "run")
    bad = Pretrain(parent=parent, steps=2, quantize=quantize)
    stages = {**STAGES, "bad": bad}
    recipe = dataclasses.replace(
        quantised, stages=stages, order=tuple(stages), final="bad"
    )
    with pytest.raises(InputError, match=message):
        recipe_lib.run(recipe, run, quiet=True)
