"""Recipes that start from a Hugging Face directory."""

import dataclasses
import json

import pytest

from configs import common
from sparse_jax import io
from sparse_jax import recipe as recipe_lib
from sparse_jax.types import InputError
from tests.recipe import helpers


@pytest.fixture
def half(recipe):
    """From dense to a trained 50 %, nothing else."""
    order = ("dense", "one_shot_50", "trained_50")
    stages = {name: recipe.stages[name] for name in order}
    return dataclasses.replace(recipe, stages=stages, order=order, final=order[-1])


def test_the_model_and_its_tokenizer_are_carried_along(finished, half, tmp_path):
    source = finished / "dense" / "model"
    half = dataclasses.replace(half, init=str(source))
    report = recipe_lib.run(half, tmp_path / "run", quiet=True)
    dense, pruned, trained = report["models"]
    whole = json.loads((finished / "report.json").read_text())["models"]
    assert json.loads((tmp_path / "run/dense/stage.json").read_text())["kind"] == "init"
    # Tokens before the import are not known; everything else is as it was.
    assert [m["tokens"] for m in (dense, pruned, trained)] == [0, 0, 256]
    assert dense["domains"] == whole[0]["domains"]
    assert pruned["domains"] == whole[1]["domains"]
    for stage in ("dense", "trained_50"):
        for name in ("tokenizer.json", "config.json"):
            carried = tmp_path / "run" / stage / "model" / name
            assert carried.read_bytes() == (source / name).read_bytes()


@pytest.mark.parametrize(
    "name",
    ["babyllama-hf", pytest.param("stories260K-hf", marks=pytest.mark.slow)],
)
def test_real_models_with_their_own_tokenizers(shared_data, half, tmp_path, name):
    source = shared_data / name
    half = helpers.replace(half, "data", heldout_limit=2000)
    half = helpers.replace(half, "train", batch_size=2)
    half = dataclasses.replace(half, init=str(source))
    # One linear: the solver is compiled for every shape of a matrix.
    one = (("layers/mlp/down/kernel", "pattern"), (".*", "dense"))
    half = helpers.replace(half, "prune", rules=one)
    half = helpers.replace_stage(half, "trained_50", steps=2, peak=1e-5)
    report = recipe_lib.run(half, tmp_path / "run", quiet=True)
    model = io.resolve(tmp_path / "run")
    assert model.config == io.load_config(source)
    assert model.tokenizer.vocab_size == report["data"]["tokenizer"]["vocab_size"]
    assert report["models"][2]["sparsity_pruned"] == pytest.approx(0.5, abs=1e-3)


def test_no_model_there(half, tmp_path):
    half = dataclasses.replace(half, init=str(tmp_path / "none"))
    with pytest.raises(InputError, match=r"stages\.dense: .*none"):
        recipe_lib.run(half, tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()


def test_a_model_without_a_tokenizer(finished, half, tmp_path):
    model = io.resolve(finished / "dense")
    io.save(tmp_path / "bare", model.params, model.config)
    half = dataclasses.replace(half, init=str(tmp_path / "bare"))
    with pytest.raises(InputError, match="tokenizer"):
        recipe_lib.run(half, tmp_path / "run", quiet=True)


def test_a_model_of_its_own_is_not_replaced(recipe):
    small = common.with_small_dense(recipe, d_model=16)
    small = helpers.replace_stage(small, "small_dense", enabled=True)
    stages = dataclasses.replace(small, init="somewhere").enabled_stages()
    assert stages["dense"].kind == "init"
    assert stages["small_dense"].kind == "pretrain"
