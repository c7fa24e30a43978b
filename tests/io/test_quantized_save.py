"""Quantised models that are saved: the same codes, scales and zeros come back."""

import functools
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from sparse_jax import io, quant
from sparse_jax import mesh as mesh_lib
from sparse_jax.io.names import LINEAR_KERNELS
from sparse_jax.models import LlamaConfig
from sparse_jax.quant import Activations, Grid, GridConfig
from sparse_jax.tree import from_paths, leaf_paths
from sparse_jax.types import InputError

CONFIG = LlamaConfig(
    vocab_size=24, d_model=32, d_ff=44, n_layers=2, n_heads=4, n_kv_heads=4
)
UP, DOWN = "layers/mlp/up/kernel", "layers/mlp/down/kernel"
NAME = "model.layers.1.mlp.up_proj"
CONFIGS = {
    "int8": GridConfig(bits=8, group=0),
    "int8_zeros": GridConfig(bits=8, group=0, symmetric=False),
    "int8_groups": GridConfig(bits=8, group=16),
    "int4": GridConfig(bits=4, group=4),
    "int4_ragged": GridConfig(bits=4, group=16),
    "int4_zeros": GridConfig(bits=4, group=16, symmetric=False),
    "int3": GridConfig(bits=3, group=0),
    "int3_zeros": GridConfig(bits=3, group=8, symmetric=False),
    "int2": GridConfig(bits=2, group=32),
    "int2_zeros": GridConfig(bits=2, group=0, symmetric=False),
}


@functools.partial(jax.jit, static_argnums=2)
def on_grid(leaf, mask, config):
    grid = quant.fit(leaf, config, mask, axis=-2)
    return jnp.where(mask, quant.round_to_grid(leaf, grid, axis=-2), 0), grid


def take(tree, layer):
    """One layer; through NumPy, so that nothing compiles."""
    return jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf)[layer]), tree)


def quantize(params, config_of, sparsity=0.5):
    """Params on their grids, masks and grids; where `config_of` has none, floats."""
    rng, leaves, grids = np.random.default_rng(1), leaf_paths(params), {}
    masks = dict.fromkeys(leaves)
    for path, leaf in leaves.items():
        config = config_of(path)
        if not re.fullmatch(LINEAR_KERNELS, path) or config is None:
            continue
        mask = jnp.asarray(rng.random(leaf.shape) >= sparsity)
        leaves[path], grid = on_grid(leaf, mask, config)
        masks[path] = mask
        for layer in range(len(leaf)):
            grids[path, layer] = take(grid, layer)
    return from_paths(leaves), from_paths(masks) if sparsity else None, grids


def assert_same_grids(found, expected):
    assert found.keys() == expected.keys()
    for key, grid in expected.items():
        assert found[key].config == grid.config, key
        for one, other in zip(
            jax.tree.leaves(found[key]), jax.tree.leaves(grid), strict=True
        ):
            assert one.dtype == jnp.float32 and np.array_equal(one, other), key


def assert_same_files(found, expected):
    assert {p.name for p in found.iterdir()} == {p.name for p in expected.iterdir()}
    for file in expected.iterdir():
        assert (found / file.name).read_bytes() == file.read_bytes(), file.name


def write_blocks(path, params, masks, grids, activations=None, adapter=None):
    """A writer that has all blocks."""
    writer = io.BlockWriter(path, CONFIG, "float32")
    for index in range(writer.n_done, 2):
        layer = take(params["layers"], index)
        kept = {
            p: take(mask, index)
            for p, mask in leaf_paths(masks or {}).items()
            if mask is not None
        }
        own = {p: grid for (p, at), grid in grids.items() if at == index}
        added = take(adapter or {}, index)
        options = {"grids": own, "activations": activations, "adapter": added}
        writer.write(index, layer, kept, [], **options)
    return writer


@pytest.mark.parametrize("name", CONFIGS)
def test_codes_scales_and_zeros_come_back(name, make_params, tmp_path):
    given = make_params(CONFIG)
    params, masks, grids = quantize(given, lambda path: CONFIGS[name])
    io.save(tmp_path / "a", params, CONFIG, masks=masks, grids=grids)
    model = io.resolve(tmp_path / "a")
    for path, leaf in leaf_paths(params).items():
        assert np.array_equal(leaf_paths(model.params)[path], leaf), path
    assert_same_grids(model.grids, grids)
    for path, mask in leaf_paths(masks).items():
        found = leaf_paths(model.masks)[path]
        assert (mask is None) == (found is None)
        assert mask is None or np.array_equal(found, mask)
    options = {"masks": model.masks, "grids": model.grids}
    io.save(tmp_path / "b", model.params, CONFIG, **options)
    assert_same_files(tmp_path / "b", tmp_path / "a")
    # Block by block: the same bits again, from what is written and from what is read.
    reader = io.open_blocks(tmp_path / "a")
    bits = CONFIGS[name].bits
    assert reader.quantized == (f"int{bits}",) and reader.activations is None
    writer = write_blocks(tmp_path / "work", params, masks, grids)
    for index in range(2):
        own = {path: grids[path, index] for path, _ in grids}
        assert_same_grids(reader.layer_grids(index), own)
        assert_same_grids(writer.layer_grids(index), own)
        for path, leaf in leaf_paths({"layers": writer.layer(index)}).items():
            assert np.array_equal(leaf, leaf_paths(params)[path][index]), path
    io.BlockWriter(tmp_path / "work", CONFIG, "float32").finish(tmp_path / "c", reader)
    assert_same_files(tmp_path / "c", tmp_path / "a")


@pytest.mark.parametrize("name", ["int8", "int8_zeros"])
def test_codes_are_those_of_quant(name, make_params, tmp_path):
    params, _, grids = quantize(make_params(CONFIG), lambda path: CONFIGS[name], 0)
    io.save(tmp_path / name, params, CONFIG, grids=grids)
    tensors = load_file(tmp_path / name / "model.safetensors")
    w_IO = params["layers"]["mlp"]["up"]["kernel"][1]
    codes = quant.to_codes(w_IO, grids[UP, 1], axis=-2)
    assert np.array_equal(tensors[f"{NAME}.weight"], codes.T)
    assert tensors[f"{NAME}.weight_scale"].dtype == np.float32


def test_several_schemes_and_floats_in_one_model(make_params, tmp_path):
    def config_of(path):
        if "attention/v" in path:
            return None
        return CONFIGS["int8" if "attention" in path else "int4_ragged"]

    params, masks, grids = quantize(make_params(CONFIG), config_of)
    del grids["layers/attention/o/kernel", 0]
    io.save(tmp_path / "a", params, CONFIG, masks=masks, grids=grids)
    model = io.resolve(tmp_path / "a")
    assert_same_grids(model.grids, grids)
    for path, leaf in leaf_paths(params).items():
        assert np.array_equal(leaf_paths(model.params)[path], leaf), path
    found = json.loads((tmp_path / "a" / "config.json").read_text())
    found = found["quantization_config"]
    assert found["format"] == "mixed-precision"
    assert found["ignore"] == [
        "model.layers.0.self_attn.v_proj",
        "model.layers.1.self_attn.v_proj",
        "model.layers.0.self_attn.o_proj",
        "lm_head",
    ]
    targets = {
        group["weights"]["strategy"]: group["targets"]
        for group in found["config_groups"].values()
    }
    assert targets["block"] == [f"model.layers.{i}.mlp.down_proj" for i in range(2)]
    assert len(targets["channel"]) == 5 and len(targets["group"]) == 4
    write_blocks(tmp_path / "work", params, masks, grids).finish(
        tmp_path / "b", io.open_blocks(tmp_path / "a")
    )
    assert_same_files(tmp_path / "b", tmp_path / "a")


@pytest.mark.parametrize("kind", ["dynamic", "static"])
def test_activations_come_back(kind, make_params, tmp_path):
    params, masks, grids = quantize(make_params(CONFIG), lambda path: CONFIGS["int8"])
    scales = {key: 0.1 + i / 7 for i, key in enumerate(grids)}
    scales = (
        {}
        if kind == "dynamic"
        else {k: float(np.float32(v)) for k, v in scales.items()}
    )
    given = Activations(kind=kind, scales=scales)
    io.save(tmp_path / "a", params, CONFIG, masks=masks, grids=grids, activations=given)
    assert io.resolve(tmp_path / "a").activations == given
    reader = io.open_blocks(tmp_path / "a")
    assert reader.activations == given
    writer = write_blocks(tmp_path / "work", params, masks, grids, given)
    assert writer.layer_activations(1).scales == {
        k: v for k, v in scales.items() if k[1]
    }
    writer.finish(tmp_path / "b", reader)
    assert_same_files(tmp_path / "b", tmp_path / "a")
    own = {path: grids[path, 0] for path, _ in grids}
    layer = take(params["layers"], 0)
    with pytest.raises(ValueError, match="blocks 1 and 0 differ"):
        writer.write(0, layer, writer.layer_masks(0), [], grids=own)


def test_dense_codes_have_no_masks(make_params, tmp_path):
    """Most 2-bit codes are zero, and a file says that none of them is pruned."""
    params, _, grids = quantize(make_params(CONFIG), lambda path: CONFIGS["int2"], 0)
    io.save(tmp_path / "a", params, CONFIG, grids=grids)
    model = io.resolve(tmp_path / "a")
    assert model.masks is None and "masks: none, says" in model.source
    assert np.mean(np.asarray(params["layers"]["mlp"]["up"]["kernel"]) == 0) > 0.3
    writer = write_blocks(tmp_path / "work", params, None, grids)
    writer.finish(tmp_path / "b", io.open_blocks(tmp_path / "a"))
    assert_same_files(tmp_path / "b", tmp_path / "a")


def test_an_adapter_beside_codes(make_params, tmp_path):
    params, masks, grids = quantize(make_params(CONFIG), lambda path: CONFIGS["int4"])
    rng = np.random.default_rng(0)
    adapter = {
        "layers/mlp/up/slorb_s": rng.standard_normal((2, 3, 44), np.float32),
        "layers/mlp/up/slorb_x": rng.standard_normal((2, 32, 3), np.float32),
        "layers/mlp/down/outlier_index": np.array([[0, 9], [5, 1407]], np.int32),
        "layers/mlp/down/outlier_value": rng.standard_normal((2, 2), np.float32),
    }
    adapter = jax.tree.map(jnp.asarray, adapter)
    options = {"masks": masks, "grids": grids, "adapter": adapter}
    io.save(tmp_path / "a", params, CONFIG, **options)
    model, reader = (
        io.resolve(tmp_path / "a"),
        io.open_blocks(tmp_path / "a", merge=True),
    )
    assert reader.quantized == ("int4",)
    assert_same_grids(
        reader.layer_grids(1), {path: grids[path, 1] for path, _ in grids}
    )
    expected = leaf_paths(model.effective_params)
    for path, leaf in leaf_paths({"layers": reader.layer(1)}).items():
        np.testing.assert_allclose(leaf, expected[path][1], rtol=1e-5, atol=1e-5)
    writer = write_blocks(tmp_path / "work", params, masks, grids, None, adapter)
    for path, leaf in writer.layer_adapter(1).items():
        assert leaf.dtype == adapter[path].dtype
        assert np.array_equal(leaf, adapter[path][1]), path
    plain = tmp_path / "plain"
    io.save(plain, params, CONFIG)
    writer.finish(tmp_path / "b", io.open_blocks(plain))
    assert_same_files(tmp_path / "b", tmp_path / "a")


def test_on_a_mesh(make_params, tmp_path):
    params, masks, grids = quantize(
        make_params(CONFIG), lambda path: CONFIGS["int4_zeros"]
    )
    io.save(tmp_path / "a", params, CONFIG, masks=masks, grids=grids)
    model = io.resolve(tmp_path / "a", mesh_lib.make_mesh())
    assert_same_grids(model.grids, grids)
    io.save(tmp_path / "b", model.params, CONFIG, masks=model.masks, grids=model.grids)
    assert_same_files(tmp_path / "b", tmp_path / "a")


def test_scales_that_are_no_bfloat16_stay_what_they_are(make_params, tmp_path):
    params, _, grids = quantize(make_params(CONFIG), lambda path: CONFIGS["int4"], 0)
    scales = grids[UP, 1].scales * np.float32(1.001)
    grids[UP, 1] = Grid(config=CONFIGS["int4"], scales=scales)
    leaves = leaf_paths(params)
    rounded = quant.round_to_grid(leaves[UP][1], grids[UP, 1], axis=-2)
    leaves[UP] = leaves[UP].at[1].set(rounded)
    io.save(tmp_path / "a", from_paths(leaves), CONFIG, grids=grids)
    assert_same_grids(io.resolve(tmp_path / "a").grids, grids)
    entries = io.open_blocks(tmp_path / "a").entries
    dtypes = [entries[f"{NAME.replace('1', i)}.weight"].scales.dtype for i in "01"]
    assert dtypes == ["BF16", "F32"]


def broken(change):
    """(params, masks, grids) with one thing changed."""

    def apply(params, masks, grids):
        leaves, kept = leaf_paths(params), leaf_paths(masks)
        change(leaves, kept, grids)
        return from_paths(leaves), from_paths(kept), grids

    return apply


def off_the_grid(leaves, kept, grids):
    leaves[UP] = leaves[UP].at[1].multiply(1.001)


def beyond_the_grid(leaves, kept, grids):
    scales = grids[UP, 1].scales[0]
    column = jnp.argmax(scales)
    leaves[UP] = leaves[UP].at[1, 0, column].set(scales[column] * 9)


def not_a_number(leaves, kept, grids):
    leaves[DOWN] = leaves[DOWN].at[0, 3, 3].set(jnp.nan)


def not_zero(leaves, kept, grids):
    kept[UP] = jnp.zeros_like(kept[UP])


def of_another_shape(leaves, kept, grids):
    grids[UP, 0] = grids[DOWN, 0]


def of_no_matrix(leaves, kept, grids):
    grids[UP, 2] = grids[UP, 0]


def of_a_norm(leaves, kept, grids):
    grids["final_norm/scale", 0] = grids[UP, 0]


def without_zeros(leaves, kept, grids):
    config = GridConfig(bits=4, group=4, symmetric=False)
    grids[UP, 0] = Grid(config=config, scales=grids[UP, 0].scales)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            off_the_grid,
            rf"{UP} of layer 1: \d+ weights are not on their grid of 4 bits",
        ),
        (beyond_the_grid, rf"{UP} of layer 1: 1 weights are not on their grid"),
        (not_a_number, rf"{DOWN} of layer 0: 1 weights are not on their grid"),
        (not_zero, rf"{UP} of layer 0: \d+ pruned weights are not zero"),
        (
            of_another_shape,
            r"expected scales of shape \[8, 44\] for 32 inputs and",
        ),
        (of_no_matrix, rf"\('{UP}', 2\) is no \(leaf path, layer\) of a matrix"),
        (of_a_norm, "grid of final_norm/scale .*: only matrices have grids"),
        (without_zeros, "zero points are for asymmetric grids alone"),
    ],
)
def test_what_does_not_fit_is_refused(change, sentence, make_params, tmp_path):
    given = quantize(make_params(CONFIG), lambda path: CONFIGS["int4"])
    params, masks, grids = broken(change)(*given)
    with pytest.raises(InputError, match=sentence) as error:
        io.save(tmp_path / "a", params, CONFIG, masks=masks, grids=grids)
    assert "\n" not in str(error.value) and not (tmp_path / "a").exists()


def test_activations_that_do_not_fit_are_refused(make_params, tmp_path):
    params, _, grids = quantize(make_params(CONFIG), lambda path: CONFIGS["int8"], 0)
    for options, sentence in (
        ({"activations": Activations()}, "there are no grids"),
        (
            {"activations": Activations(kind="static"), "grids": grids},
            "attention/q/kernel of layer 0 is quantised and has no static scale",
        ),
    ):
        with pytest.raises(InputError, match=sentence):
            io.save(tmp_path / "a", params, CONFIG, **options)
    for scale in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(InputError, match="must be positive and finite"):
            Activations(kind="static", scales={(UP, 0): scale})
    with pytest.raises(InputError, match="are of the kind 'static'"):
        Activations(scales={(UP, 0): 1.0})
