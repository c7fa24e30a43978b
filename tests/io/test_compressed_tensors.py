"""Quantised checkpoints: what is read is code * scale, and what is not is refused."""

import jax.numpy as jnp
import numpy as np
import pytest

from sparse_jax import io, quant
from sparse_jax.io.quantization_config import Scheme, from_json
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
    "words3": quantized.scheme(3, format="pack-quantized"),
    "groups2": quantized.scheme(2, 64, format="pack-quantized"),
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
    bits = SCHEMES[name]["config_groups"]["group_0"]["weights"]["num_bits"]
    assert reader.quantized == (f"int{bits}",)


@pytest.mark.parametrize(
    ("bits", "group", "format"),
    [(8, 0, "int-quantized"), (2, 32, "pack-quantized"), (3, 0, "pack-quantized")],
)
def test_zero_points_as_others_store_them(bits, group, format, tmp_path):
    """Less 2^(bits - 1), and along the outputs in words where codes are packed."""
    rng, zeros = np.random.default_rng(1), {}

    def add(tensors):
        for name in [key for key in tensors if key.endswith("_scale")]:
            key = name.replace("_scale", "_zero_point")
            limit = 1 << bits - 1
            zero = rng.integers(-limit, limit, tensors[name].shape).astype(np.int8)
            zeros[name.removesuffix("_scale")] = zero
            packed = format == "pack-quantized"
            tensors[key] = quantized.pack_words(zero.T, bits).T if packed else zero
        return tensors

    settings = quantized.scheme(bits, group, format)
    settings["config_groups"]["group_0"]["weights"]["symmetric"] = False
    written = quantized.write(tmp_path / "a", CONFIG, settings, changes=add)
    entry = io.open_blocks(tmp_path / "a").entries[UP]
    codes, scales = written.codes[UP], written.scales[UP].astype(np.float32)
    width = 128 // scales.shape[1]
    zero = np.repeat(zeros[UP], width, axis=1)
    expected = (codes - zero.astype(np.float32)) * np.repeat(scales, width, axis=1)
    assert np.array_equal(entry.read(), expected)
    for start, stop in ((0, 256), (5, 9), (31, 33), (64, 65), (250, 256)):
        assert np.array_equal(entry.rows(start, stop), expected[start:stop])
        found = entry.row_zeros(start, stop)
        assert np.array_equal(found, zeros[UP][start:stop] + float(1 << bits - 1))
    grid = io.resolve(tmp_path / "a").grids["layers/mlp/up/kernel", 1]
    assert not grid.config.symmetric and grid.config.bits == bits
    from_grid = quant.from_codes(jnp.asarray(codes.T), grid, axis=-2)
    assert np.array_equal(from_grid, expected.T)


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
        ({"kv_cache_scheme": {"num_bits": 8}}, "kv_cache_scheme is not supported"),
        ({"ignore": "lm_head"}, "ignore must be a list of names, found 'lm_head'"),
        ({"ignore": ["re:("]}, r"ignore: 're:\(' is no regular expression"),
        ({"config_groups": {}}, "config_groups is missing or empty"),
        ({"config_groups": {"a": ["Linear"]}}, "expected the scheme of its weights"),
        (
            {"weights": {"symmetric": False, "strategy": "tensor"}},
            "weights of symmetric False are not supp",
        ),
        ({"weights": {"actorder": "group"}}, "weights of actorder 'group' are not"),
        ({"weights": {"type": "float"}}, "weights of type 'float' are not supported"),
        ({"weights": {"num_bits": 4}}, "num_bits 4 are not supported in int-quantized"),
        ({"weights": {"strategy": "token"}}, "weights of strategy 'token' are not"),
        (
            {"weights": {"strategy": "block", "block_structure": [128, 128]}},
            r"block_structure must be \[1, inputs\], found \[128, 128\]",
        ),
        (
            {"weights": {"strategy": "block", "block_structure": [1, -4]}},
            "group_size must be at least 1, found -4",
        ),
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
        from_json({"quantization_config": config | changes}, "config.json")


def test_a_scheme_of_its_own_format():
    config = quantized.scheme(8)
    config["config_groups"]["group_0"]["format"] = "pack-quantized"
    config["config_groups"]["group_0"]["weights"] |= {"strategy": None}
    found = from_json({"quantization_config": config}, "config.json")
    assert found.groups == ((Scheme(bits=8, group=0, packed=True), ("Linear",)),)


def test_a_scheme_is_found_by_its_targets():
    """Groups of 96 and 128 inputs, of 192, have as many scales."""
    settings = quantized.scheme(4, 96, format="pack-quantized")
    other = quantized.scheme(4, 128, format="pack-quantized")["config_groups"]
    names = {
        "exact": ["model.layers.0.mlp.up_proj"],
        "regex": ["re:.*down_proj$"],
        "class": ["Linear"],
    }
    for name, targets in names.items():
        groups = {
            "group_0": settings["config_groups"]["group_0"] | {"targets": ["Linear"]},
            "group_1": other["group_0"] | {"targets": targets},
        }
        found = from_json(
            {"quantization_config": settings | {"config_groups": groups}}, "a"
        )
        widths = [
            found.schemes(f"model.layers.0.mlp.{module}_proj")[0].group
            for module in ("up", "down", "gate")
        ]
        expected = {"exact": [128, 96, 96], "regex": [96, 128, 96]}
        assert widths == expected.get(name, [96, 96, 96])


def test_inputs_rounded_in_other_ways_are_logged(tmp_path, caplog):
    settings = quantized.scheme(8)
    inputs = {"num_bits": 4, "dynamic": True, "strategy": "token"}
    settings["config_groups"]["group_0"]["input_activations"] = inputs
    quantized.write(tmp_path / "a", CONFIG, settings)
    assert io.open_blocks(tmp_path / "a").activations is None
    assert "input_activations are not dynamic per token" in caplog.text


def test_static_scales_are_read_and_must_be_there(tmp_path):
    def add(tensors):
        scales = {
            name.replace("weight_packed", "input_scale"): np.array([0.5], np.float32)
            for name in tensors
            if name.endswith("_packed")
        }
        return tensors | scales

    settings = quantized.scheme(4, format="pack-quantized")
    inputs = {"num_bits": 8, "dynamic": False, "symmetric": True}
    settings["config_groups"]["group_0"]["input_activations"] = inputs
    quantized.write(tmp_path / "a", CONFIG, settings, changes=add)
    found = io.open_blocks(tmp_path / "a").activations
    assert found.kind == "static" and len(found.scales) == 14
    assert found.scales["layers/mlp/up/kernel", 1] == 0.5
    quantized.write(tmp_path / "b", CONFIG, settings)
    with pytest.raises(InputError, match=r"input_scale' must hold the static scale"):
        io.open_blocks(tmp_path / "b")


def test_zeros_that_rounding_makes_are_no_masks(tmp_path):
    """Of 4-bit codes 14 in 100 may be zero by chance, half of them may not."""
    settings = quantized.scheme(4, format="pack-quantized")
    for name, part in (("dense", 0.86), ("pruned", 0.5)):
        rng = np.random.default_rng(0)

        def kept(shape, part=part, rng=rng):
            return rng.random(shape) < part

        quantized.write(tmp_path / name, CONFIG, settings, kept=kept)
        assert io.open_blocks(tmp_path / name).masked == (name == "pruned")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            {f"{UP}_g_idx": np.zeros(128, np.int32)},
            r"weight_g_idx' orders the inputs of a matrix by activation",
        ),
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
            r"and zero points of I8 \[256, 1\] is no matrix",
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
