import dataclasses
import json
import logging
import shutil

import jax.numpy as jnp
import numpy as np
import pytest

from sparse_jax import io
from sparse_jax.data.tokenizer import load_tokenizer
from sparse_jax.models import sizes
from sparse_jax.tree import from_paths, leaf_paths
from sparse_jax.types import InputError


@pytest.fixture
def sparse(params, config) -> tuple[dict, dict]:
    """Params whose down matrices are pruned by half, and their masks."""
    down = params["layers"]["mlp"]["down"]
    mask = jnp.arange(down["kernel"].size).reshape(down["kernel"].shape) % 2 == 0
    down["kernel"] = jnp.where(mask, down["kernel"], 0)
    masks = {path: None for path in leaf_paths(params)}
    masks["layers/mlp/down/kernel"] = mask
    return params, from_paths(masks)


def test_a_dense_model_has_no_masks(tmp_path, params, config):
    io.save(tmp_path / "a", params, config)
    model = io.resolve(str(tmp_path / "a"))
    assert model.masks is None and model.tokenizer is None and model.config == config
    assert f"Hugging Face directory {tmp_path / 'a'}" in model.source
    assert "dense (0 of" in model.source


def test_masks_come_from_their_file(tmp_path, sparse, config):
    params, masks = sparse
    kernel = params["layers"]["mlp"]["down"]["kernel"]
    params["layers"]["mlp"]["down"]["kernel"] = kernel.at[0, 0, 0].set(0.0)
    io.save(tmp_path / "a", params, config, masks=masks)
    model = io.resolve(tmp_path / "a")
    assert model.source.endswith("masks: from masks.safetensors")
    found = leaf_paths(model.masks)
    expected = masks["layers"]["mlp"]["down"]["kernel"]
    # A kept weight may be zero: the file knows, zeros alone would not.
    assert bool(expected[0, 0, 0])
    assert np.array_equal(found["layers/mlp/down/kernel"], expected)
    assert found["layers/mlp/up/kernel"] is None


def test_masks_come_from_zeros_and_it_is_said(tmp_path, sparse, config, caplog):
    params, masks = sparse
    io.save(tmp_path / "a", params, config)
    with caplog.at_level(logging.WARNING):
        model = io.resolve(tmp_path / "a")
    assert "masks: from exact zeros" in caplog.text
    assert "masks: from exact zeros" in model.source
    found = leaf_paths(model.masks)
    expected = masks["layers"]["mlp"]["down"]["kernel"]
    assert np.array_equal(found["layers/mlp/down/kernel"], expected)
    assert found["layers/attention/q/kernel"].all()  # a prunable leaf without zeros
    assert found["embed/embedding"] is None


def test_a_zero_by_chance_is_no_mask(tmp_path, params, config):
    kernel = params["layers"]["mlp"]["down"]["kernel"]
    params["layers"]["mlp"]["down"]["kernel"] = kernel.at[0, 0, 0].set(0.0)
    io.save(tmp_path / "a", params, config)
    model = io.resolve(tmp_path / "a")
    assert model.masks is None and "dense (1 of" in model.source


def test_masks_of_other_weights_are_refused(tmp_path, sparse, config):
    params, masks = sparse
    io.save(tmp_path / "a", params, config, masks=masks)
    params["layers"]["mlp"]["down"]["kernel"] += 1
    io.save(tmp_path / "b", params, config)
    shutil.copy(tmp_path / "a/masks.safetensors", tmp_path / "b")
    with pytest.raises(InputError, match=r"192 weights of 'model.layers.0.mlp.down"):
        io.resolve(tmp_path / "b")


def test_run_and_stage_directories(tmp_path, sparse, config):
    params, masks = sparse
    run = tmp_path / "run"
    io.save(run / "3_train" / "model", params, config, masks=masks)
    (run / "recipe.json").write_text(json.dumps({"final": "3_train"}))
    for path in (run, run / "3_train"):
        model = io.resolve(path)
        assert f"stage {run / '3_train'}; " in model.source and model.masks is not None
    assert io.resolve(run).source.startswith(f"run {run}, stage")


@pytest.mark.parametrize("final", ["../other", "/etc", "", 3, None, "..", "."])
def test_a_bad_final_stage_is_refused(final, tmp_path):
    (tmp_path / "recipe.json").write_text(json.dumps({"final": final}))
    with pytest.raises(InputError, match=r"recipe\.json: 'final' must name a stage"):
        io.resolve(tmp_path)


def test_an_unfinished_run_is_said(tmp_path):
    (tmp_path / "recipe.json").write_text(json.dumps({"final": "3_train"}))
    with pytest.raises(InputError, match="3_train: no model/: the stage has not fini"):
        io.resolve(tmp_path)


def test_a_size_is_a_config_alone():
    model = io.resolve("llama2_7b")
    assert model.config == sizes.get("llama2_7b")
    assert model.params is model.masks is model.tokenizer is None


def test_anything_else_lists_what_is_accepted(tmp_path):
    accepted = r"a Hugging Face directory .*llama2_7b"
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    for path, message in (
        ("lama2_7b", "'lama2_7b' is neither an existing directory nor a size"),
        (tmp_path / "file", "is a file"),
        (tmp_path / "empty", r"no config\.json, no recipe\.json and no model/"),
    ):
        with pytest.raises(InputError, match=f"{message}.*{accepted}"):
            io.resolve(path)


def test_a_tokenizer_larger_than_the_vocabulary(tmp_path, shared_data):
    source = shared_data / "stories260K-hf"
    model = io.resolve(source)
    assert model.tokenizer.vocab_size == 512
    config = dataclasses.replace(model.config, vocab_size=500)
    params = model.params | {"embed": {"embedding": jnp.zeros((500, 64))}}
    files = load_tokenizer(source).files
    io.save(tmp_path / "a", params, config, tokenizer_files=files)
    with pytest.raises(InputError, match=r"has 512 tokens .* vocabulary holds 500"):
        io.resolve(tmp_path / "a")
