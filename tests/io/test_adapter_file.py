"""What is added to the pruned or quantised weights of a Hugging Face directory."""

import json
import pathlib
import shutil

import jax
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from sparse_jax import infer, io, models
from sparse_jax import mesh as mesh_lib
from sparse_jax.evaluate import evaluate
from sparse_jax.io.adapter_file import ADAPTER
from sparse_jax.sparsity import adapters, masks
from sparse_jax.tree import from_paths, leaf_paths
from sparse_jax.types import InputError

DOCUMENT = pathlib.Path(__file__).parents[2] / "docs" / "adapter_format.md"
UP = "model.layers.1.mlp.up_proj"


GROUP = 8


def make(params, trainable):
    """Pruned params of which two linears have factors, their masks, the factors."""
    rng, leaves = np.random.default_rng(0), leaf_paths(params)
    kept, factors = dict.fromkeys(leaves), {}
    for path in ("layers/mlp/up/kernel", "layers/attention/o/kernel"):
        n_layers, n_in, n_out = leaves[path].shape
        mask = rng.random((n_layers, n_in, n_out)) < 0.5
        kept[path] = jax.device_put(mask)
        leaves[path] = jax.device_put(np.where(mask, leaves[path], np.float32(0)))
        shapes = {"slorb_s": (n_layers, n_in // GROUP, n_out)}
        if trainable:
            shapes["slorb_x"] = (n_layers, n_in, n_in // GROUP)
        for name, shape in shapes.items():
            factor = rng.standard_normal(shape, np.float32)
            factors[path.replace("kernel", name)] = jax.device_put(factor)
    return from_paths(leaves), from_paths(kept), factors


@pytest.fixture(params=[False, True], ids=["indicator", "stored"])
def given(request, params):
    return make(params, request.param)


def with_outliers(params):
    """Factors of rank 5, which divides no width, and outliers, also where no factor is.

    They increase, and are the first and the last entry, too.
    """
    rng = np.random.default_rng(1)
    sparse, kept, _ = make(params, False)
    added = {
        "layers/attention/o/slorb_s": rng.standard_normal((3, 5, 16), np.float32),
        "layers/attention/o/slorb_x": rng.standard_normal((3, 16, 5), np.float32),
    }
    for node, size in (("layers/attention/o", 16 * 16), ("layers/mlp/down", 16 * 24)):
        places = np.stack([np.array([0, 3 + i, 90, size - 1]) for i in range(3)])
        added[f"{node}/outlier_index"] = places.astype(np.int32)
        added[f"{node}/outlier_value"] = rng.standard_normal((3, 4), np.float32)
    return sparse, kept, jax.tree.map(jax.device_put, added)


@pytest.fixture
def saved(tmp_path, params, config):
    """A model whose factors include X."""
    sparse, kept, factors = make(params, True)
    io.save(tmp_path / "model", sparse, config, masks=kept, adapter=factors)
    return tmp_path / "model"


def assert_same_bits(found, expected):
    assert found.keys() == expected.keys()
    for path, leaf in expected.items():
        assert np.array_equal(
            np.asarray(found[path]).view(np.uint32), np.asarray(leaf).view(np.uint32)
        ), path


@pytest.mark.parametrize("on_mesh", [False, True])
def test_the_same_bits_come_back(tmp_path, given, config, on_mesh):
    sparse, kept, factors = given
    io.save(tmp_path / "a", sparse, config, masks=kept, adapter=factors)
    model = io.resolve(tmp_path / "a", mesh_lib.make_mesh() if on_mesh else None)
    assert_same_bits(model.adapter, factors)
    assert_same_bits(leaf_paths(model.params), leaf_paths(sparse))
    assert masks.count(model.masks) == masks.count(kept)
    assert model.source.split("; ")[-1] == f"adapter: from {ADAPTER}, low-rank factors"
    io.save(
        tmp_path / "b", model.params, config, masks=model.masks, adapter=model.adapter
    )
    for file in (tmp_path / "a").iterdir():
        assert (tmp_path / "b" / file.name).read_bytes() == file.read_bytes()


def test_the_file_is_as_documented(tmp_path, given, config):
    sparse, kept, factors = given
    io.save(tmp_path / "a", sparse, config, masks=kept, adapter=factors)
    tensors = load_file(tmp_path / "a" / ADAPTER)
    with safe_open(tmp_path / "a" / ADAPTER, "numpy") as file:
        assert file.metadata() == {"format": "sparse_jax.adapter", "version": "2"}
    assert len(tensors) == config.n_layers * len(factors)
    code = DOCUMENT.read_text().split("```python")[1].split("```")[0]
    exec(code, namespace := {})
    expected = namespace["merged"](tmp_path / "a", UP)
    found = io.resolve(tmp_path / "a").effective_params["layers"]["mlp"]["up"]
    np.testing.assert_allclose(found["kernel"][1].T, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("on_mesh", [False, True])
def test_outliers_and_any_rank(tmp_path, params, config, on_mesh):
    sparse, kept, added = with_outliers(params)
    io.save(tmp_path / "a", sparse, config, masks=kept, adapter=added)
    model = io.resolve(tmp_path / "a", mesh_lib.make_mesh() if on_mesh else None)
    assert model.source.endswith("low-rank factors and outliers")
    assert model.adapter["layers/mlp/down/outlier_index"].dtype == np.int32
    assert_same_bits(model.adapter, added)
    code = DOCUMENT.read_text().split("```python")[1].split("```")[0]
    exec(code, namespace := {})
    reader = io.open_blocks(tmp_path / "a", merge=True)
    leaves = leaf_paths(model.effective_params)
    for name, path in (
        ("self_attn.o_proj", "attention/o"),
        ("mlp.down_proj", "mlp/down"),
    ):
        expected = namespace["merged"](tmp_path / "a", f"model.layers.2.{name}")
        found = leaves[f"layers/{path}/kernel"][2].T
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
        entry = reader.entries[f"model.layers.2.{name}.weight"]
        for start, stop in ((0, 16), (0, 1), (5, 6), (15, 16)):
            rows = entry.rows(start, stop)
            np.testing.assert_allclose(rows, expected[start:stop], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "places", [[0, 3, 3, 255], [0, 5, 4, 255], [-1, 1, 2, 3], [0, 1, 2, 256]]
)
def test_places_that_are_none_are_refused(tmp_path, params, config, places):
    sparse, kept, added = with_outliers(params)
    io.save(tmp_path / "a", sparse, config, masks=kept, adapter=added)
    name = "model.layers.1.self_attn.o_proj.outlier_index"
    wrong = np.array(places, np.int32)
    change_tensors(tmp_path / "a", lambda tensors: tensors.update({name: wrong}))
    for read in (io.resolve, lambda path: io.open_blocks(path, merge=True)):
        with pytest.raises(InputError, match=rf"{name}': the places of outliers must"):
            read(tmp_path / "a")


def test_factors_are_rounded_as_the_weights_are(tmp_path, given, config):
    sparse, _, factors = given
    io.save(tmp_path / "a", sparse, config, adapter=factors, dtype="bfloat16")
    for path, leaf in io.resolve(tmp_path / "a").adapter.items():
        rounded = np.asarray(factors[path]).astype(jax.numpy.bfloat16)
        np.testing.assert_array_equal(leaf, rounded.astype(np.float32))


def test_none_and_an_empty_one_write_no_file(tmp_path, params, config):
    for name, adapter in (("a", None), ("b", {})):
        io.save(tmp_path / name, params, config, adapter=adapter)
        assert not (tmp_path / name / ADAPTER).exists()
        model = io.resolve(tmp_path / name)
        assert model.adapter is None and model.effective_params is model.params


def test_it_computes_what_merged_weights_compute(tmp_path, given, config):
    sparse, kept, factors = given
    io.save(tmp_path / "a", sparse, config, masks=kept, adapter=factors)
    merged = adapters.merge(sparse, factors)
    io.save(tmp_path / "merged", merged, config)
    ids = np.random.default_rng(0).integers(0, config.vocab_size, 65)
    nbytes = np.ones_like(ids)
    options = {"window": 16, "batch_size": 4}
    losses = [
        evaluate(params, config, ids, nbytes, **options).loss
        for params in (io.resolve(tmp_path / "a").effective_params, merged, sparse)
    ]
    assert losses[0] == losses[1] and abs(losses[0] - losses[2]) > 1e-3
    # What generates from a directory reads rows, and merges them as they come.
    reader = io.open_blocks(tmp_path / "a", merge=True)
    other = io.open_blocks(tmp_path / "merged")
    for index in range(config.n_layers):
        found, expected = (leaf_paths(r.layer(index)) for r in (reader, other))
        for path, leaf in expected.items():
            np.testing.assert_allclose(found[path], leaf, rtol=1e-5, atol=1e-5)
    packed = infer.load_model(tmp_path / "a")
    up = packed.params["layers"]["mlp"]["up"]["kernel"][1]
    assert up.format == "dense_float32" and "adapter" in packed.source
    np.testing.assert_allclose(
        up.unpack().T, merged["layers"]["mlp"]["up"]["kernel"][1], atol=1e-5
    )


def test_whoever_would_drop_it_is_refused(saved):
    for read in (io.open_blocks, io.load):
        with pytest.raises(InputError, match=r"holds an adapter \(adapter.saf"):
            read(saved)


def of_all(tensors, name, change):
    """What becomes of the tensors of some name, in all layers."""
    return {
        key: np.ascontiguousarray(change(tensor))
        for key, tensor in tensors.items()
        if name in key
    }


def of_rank_17(tensors):
    s = of_all(tensors, "up_proj.slorb_s", lambda a: np.ones((24, 17), "f4"))
    return s | of_all(tensors, "up_proj.slorb_x", lambda a: np.ones((17, 16), "f4"))


def change_tensors(saved, change, **metadata):
    """Writes the file anew with other tensors and metadata."""
    path = saved / ADAPTER
    with safe_open(path, "numpy") as file:
        metadata = file.metadata() | metadata
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, {k: v for k, v in metadata.items() if v is not None})


@pytest.mark.parametrize(
    ("change", "metadata", "message"),
    [
        (lambda t: t.update({f"{UP}.slorb_s": t[f"{UP}.slorb_s"][:, :1].copy()}), {},
         rf"'{UP}.slorb_s' must have 2 axes, shape \[24, 2\] as .* found \[24, 1\]"),
        (lambda t: t.update({f"{UP}.slorb_x": t[f"{UP}.slorb_x"].astype("i4")}), {},
         rf"'{UP}.slorb_x' must have .* found \[2, 16\] and I32"),
        (lambda t: t.pop(f"{UP}.slorb_x"), {}, rf"'{UP}.slorb_x' .* is missing"),
        (lambda t: t.pop(f"{UP}.slorb_s"), {}, rf"'{UP}.slorb_s' .* is missing"),
        (lambda t: t.update({"lm_head.weight": np.ones(3)}), {},
         "holds tensor 'lm_head.weight', where every tensor"),
        (lambda t: t.clear(), {}, "holds no tensor, where every"),
        (lambda t: t.update(of_all(t, "up_proj.slorb_x", lambda a: a[:1])), {},
         r"up/slorb_x: expected the shape \(3, 16, 2\) beside .*; it belongs to"),
        (lambda t: t.update(of_all(t, "slorb_x", lambda a: a[0])), {},
         r"slorb_x' must have 2 axes"),
        (lambda t: t.update(of_rank_17(t)), {}, "its rank 17 is above the 16 inputs"),
        (lambda t: t.update({f"{UP}.outlier_index": np.ones(2, "i4")}), {},
         "layers.0.mlp.up_proj.outlier_index' of shape .* is missing"),
        (lambda t: None, {"version": "1"}, "not an adapter that can be read"),
        (lambda t: None, {"format": None}, "not an adapter that can be read"),
    ],
)  # fmt: skip
def test_a_file_that_does_not_fit_is_refused(saved, change, metadata, message):
    change_tensors(saved, change, **metadata)
    for read in (io.resolve, lambda path: io.open_blocks(path, merge=True)):
        with pytest.raises(InputError, match=message) as error:
            read(saved)
        assert ADAPTER in str(error.value) and "\n" not in str(error.value)


def test_a_truncated_file_is_refused(saved):
    data = (saved / ADAPTER).read_bytes()
    (saved / ADAPTER).write_bytes(data[:-4])
    with pytest.raises(InputError, match="truncated or damaged"):
        io.resolve(saved)


def test_another_model_s_file_is_refused(saved, tmp_path, make_params):
    other = models.LlamaConfig(
        vocab_size=8, d_model=32, d_ff=24, n_layers=3, n_heads=4, n_kv_heads=2
    )
    io.save(tmp_path / "other", make_params(other), other)
    shutil.copy(saved / ADAPTER, tmp_path / "other" / ADAPTER)
    with pytest.raises(InputError, match=r"o/slorb_s: expected the shape \(3, 2, 32\)"):
        io.resolve(tmp_path / "other")


def test_only_factors_that_fit_are_saved(tmp_path, params, config):
    sparse, _, factors = make(params, True)
    scale = {"layers/mlp/up/scale": np.ones((3, 2, 24), np.float32)}
    wrong = {"layers/mlp/up/slorb_s": np.ones((3, 2, 23), np.float32)}
    places = {"layers/mlp/up/outlier_index": np.array([[1, 2], [2, 2], [1, 2]], "i4")}
    places["layers/mlp/up/outlier_value"] = np.ones((3, 2), np.float32)
    for adapter, error in (
        (factors | scale, "scale.* are no low-rank factors or outliers; fold"),
        (factors | wrong, r"layers/mlp/up/slorb_s: expected the shape \(3, 2, 24\)"),
        (places, r"outlier_index of layer 1: .* must increase from 0 to at most 383"),
    ):
        with pytest.raises(ValueError, match=error):
            io.save(tmp_path / "a", sparse, config, adapter=adapter)
        assert not (tmp_path / "a").exists()


def test_a_failed_save_leaves_the_old_model(saved, params, config):
    before = {file.name: file.read_bytes() for file in saved.iterdir()}
    factors = {"layers/mlp/up/slorb_s": np.full((3, 2, 24), 1e6, np.float32)}
    with pytest.raises(InputError, match="does not fit into float16"):
        io.save(saved, params, config, adapter=factors, dtype="float16", overwrite=True)
    assert before == {file.name: file.read_bytes() for file in saved.iterdir()}
    assert json.loads(before["config.json"])["num_hidden_layers"] == 3
