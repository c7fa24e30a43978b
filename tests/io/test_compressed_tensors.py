"""Quantised checkpoints: what is read is code * scale, and what is not is refused."""

import numpy as np
import pytest

from sparse_jax import io
from sparse_jax.io.compressed_tensors import Scheme, schemes
from sparse_jax.models import LlamaConfig
from sparse_jax.tree import leaf_paths
from sparse_jax.types import InputError
from tests.io import quantized_models as quantized

CONFIG = LlamaConfig(
    vocab_size=24, d_model=128, d_ff=256, n_layers=2, n_heads=2, n_kv_heads=1
)
UP = "model.layers.1.mlp.up_proj.weight"
SCHEMES = {
    "int8": quantized.scheme(8),
    "naive": quantized.scheme(8, format="naive-quantized"),
    "words8": quantized.scheme(8, format="pack-quantized"),
    "words4": quantized.scheme(4, format="pack-quantized"),
    "groups4": quantized.scheme(4, 32, format="pack-quantized"),
    "groups8": quantized.scheme(8, 64),
}


@pytest.mark.parametrize("name", SCHEMES)
def test_weights_are_code_times_scale(name, tmp_path):
    written = quantized.write(tmp_path / "a", CONFIG, SCHEMES[name])
    leaves = leaf_paths(io.resolve(tmp_path / "a").params)
    expected = written.weights(UP)
    assert np.array_equal(leaves["layers/mlp/up/kernel"][1].T, expected)
    reader = io.open_blocks(tmp_path / "a")
    assert np.array_equal(reader.layer(1)["mlp"]["up"]["kernel"].T, expected)
    entry = reader.entries[UP]
    assert np.array_equal(entry.take(np.array([0, 3, 4])), expected[[0, 3, 4]])
    assert reader.dtype == "float32" and reader.unquantized_dtype == "bfloat16"
    assert reader.quantized == (("int4",) if name.endswith("4") else ("int8",))


def test_one_scale_for_a_matrix(tmp_path):
    def one(tensors):
        return tensors | {f"{UP}_scale": np.array([0.5], np.float32)}

    settings = quantized.scheme(8)
    settings["config_groups"]["group_0"]["weights"]["strategy"] = "tensor"
    written = quantized.write(tmp_path / "a", CONFIG, settings, changes=one)
    found = io.open_blocks(tmp_path / "a").layer(1)["mlp"]["up"]["kernel"]
    assert np.array_equal(found.T, written.codes[UP] * np.float32(0.5))


def test_matrices_that_are_left_in_floats_stay_floats(tmp_path):
    def plain(tensors):
        tensors = {k: v for k, v in tensors.items() if not k.startswith(UP)}
        return tensors | {UP: np.ones((256, 128), np.float32)}

    quantized.write(tmp_path / "a", CONFIG, quantized.scheme(8), changes=plain)
    reader = io.open_blocks(tmp_path / "a")
    assert np.all(reader.layer(1)["mlp"]["up"]["kernel"] == 1)
    assert reader.unquantized_dtype == "float32"


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"quant_method": "awq"}, "quant_method 'awq' is not supported, only"),
        ({"format": "marlin-24"}, "group_0: format 'marlin-24' is not supported"),
        ({"transform_config": {"a": 1}}, "transform_config is not supported"),
        (
            {"sparsity_config": {"format": "sparse-24-bitmask"}},
            "sparsity_config is not",
        ),
        ({"config_groups": {}}, "config_groups is missing or empty"),
        ({"config_groups": {"a": ["Linear"]}}, "expected the scheme of its weights"),
        ({"weights": {"symmetric": False}}, "weights of symmetric False are not supp"),
        ({"weights": {"type": "float"}}, "weights of type 'float' are not supported"),
        ({"weights": {"num_bits": 4}}, "num_bits 4 are not supported in int-quantized"),
        ({"weights": {"strategy": "block"}}, "weights of strategy 'block' are not"),
        (
            {"weights": {"strategy": "group", "group_size": 0}},
            "group_size must be at least 1, found 0",
        ),
    ],
)
def test_schemes_that_cannot_be_read(changes, sentence):
    config = quantized.scheme(8)
    config["config_groups"]["group_0"]["weights"] |= changes.pop("weights", {})
    with pytest.raises(InputError, match=rf"^config\.json: quant.*{sentence}"):
        schemes({"quantization_config": config | changes}, "config.json")


def test_a_scheme_of_its_own_format():
    config = quantized.scheme(8)
    config["config_groups"]["group_0"]["format"] = "pack-quantized"
    config["config_groups"]["group_0"]["weights"] |= {"strategy": None}
    found = schemes({"quantization_config": config}, "config.json")
    assert found == (Scheme(bits=8, group=0, packed=True),)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({f"{UP}_scale": None}, r"tensor '.*up_proj\.weight_scale' is missing"),
        ({f"{UP}_shape": None}, r"tensor '.*up_proj\.weight_shape' is missing"),
        (
            {f"{UP}_shape": np.array([256, 127])},
            r"weight_shape' must hold \[256, 128\], found \[256, 127\] of I64",
        ),
        (
            {f"{UP}_scale": np.ones((256, 2), np.float32)},
            r"with scales of F32 \[256, 2\] is no matrix \[256, 128\] of any scheme",
        ),
        (
            {f"{UP}_packed": np.zeros((256, 15), np.int32)},
            r"tensor '.*weight_packed' of I32 \[256, 15\] with .* is no matrix",
        ),
        (
            {f"{UP}_zero_point": np.zeros((256, 1), np.int8)},
            r"tensor '.*weight_zero_point' .* is not part of the model",
        ),
    ],
)
def test_tensors_that_do_not_fit(change, sentence, tmp_path):
    def damage(tensors):
        return {k: v for k, v in (tensors | change).items() if v is not None}

    settings = quantized.scheme(4, format="pack-quantized")
    quantized.write(tmp_path / "a", CONFIG, settings, changes=damage)
    with pytest.raises(InputError, match=sentence):
        io.open_blocks(tmp_path / "a")
