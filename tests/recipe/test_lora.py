"""A stage that trains masked adapters alone, from recipe to a plain sparse model."""

import dataclasses
import json

import numpy as np
import pytest

from configs import common
from sparse_jax import io
from sparse_jax import recipe as recipe_lib
from sparse_jax.recipe import Pretrain, Prune
from sparse_jax.schema import build
from sparse_jax.sparsity.adapters import LORA_TRAINED, LoraConfig, LowRankConfig
from sparse_jax.train import AdaptiveConfig, DistillConfig
from sparse_jax.tree import leaf_paths
from sparse_jax.types import InputError
from tests.recipe import helpers

LORA = Pretrain(
    parent="pruned",
    steps=4,
    peak=3e-2,
    teacher="dense",
    distill=DistillConfig(kl_weight=0.0, feature_weight=1.0),
    lora=LoraConfig(rank=4),
)
STAGES = {
    "dense": Pretrain(steps=2),
    "pruned": Prune(parent="dense", sparsity=0.7, solver="magnitude"),
    "adapted": LORA,
}


@pytest.fixture(scope="module")
def adapted(recipe):
    return dataclasses.replace(
        recipe, name="lora", stages=STAGES, order=tuple(STAGES), final="adapted"
    )


@pytest.fixture(scope="module")
def done(adapted, tmp_path_factory):
    directory = tmp_path_factory.mktemp("lora") / "run"
    recipe_lib.run(adapted, directory, quiet=True)
    return directory


def test_it_survives_the_way_through_flags(adapted):
    assert build(recipe_lib.Recipe, common.to_config(adapted).to_dict()) == adapted


def test_only_its_stage_freezes_the_rest(adapted):
    optimizers = {
        name: adapted.train_config(stage).optimizer.trainable
        for name, stage in STAGES.items()
        if isinstance(stage, Pretrain)
    }
    assert optimizers == {"dense": None, "adapted": LORA_TRAINED}


def test_what_is_saved_is_the_pruned_model_with_other_weights(done):
    pruned, adapted = (io.resolve(done / name) for name in ("pruned", "adapted"))
    assert adapted.adapter is None
    before, after = leaf_paths(pruned.params), leaf_paths(adapted.params)
    masks = [leaf_paths(model.masks) for model in (pruned, adapted)]
    assert before.keys() == after.keys() == masks[0].keys() == masks[1].keys()
    for path, mask in masks[0].items():
        same = np.array_equal(before[path], after[path])
        if mask is None:
            assert same and masks[1][path] is None, path
        else:
            np.testing.assert_array_equal(mask, masks[1][path])
            assert not same and not np.asarray(after[path])[~np.asarray(mask)].any()


def test_it_learned_something(done):
    rows = {
        name: json.loads((done / name / "result.json").read_text())
        for name in ("pruned", "adapted")
    }
    losses = [row["domains"]["prose"]["loss"] for row in rows.values()]
    assert losses[1] < losses[0]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"low_rank": LowRankConfig()}, "leave out low_rank, or it"),
        ({"learned_scales": True}, "leave out learned_scales, or it"),
        ({"adaptive": AdaptiveConfig()}, "leave out adaptive, or it"),
    ],
)
def test_contradictions_are_named(fields, message):
    with pytest.raises(InputError, match=f"lora trains its factors alone: {message}"):
        dataclasses.replace(LORA, **fields)


def test_a_rank_that_is_too_large_is_refused_before_any_work(adapted, tmp_path):
    with pytest.raises(InputError, match=r"lora.rank = 33 is more than layers/"):
        bad = helpers.replace_stage(adapted, "adapted", lora=LoraConfig(rank=33))
        recipe_lib.run(bad, tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()
