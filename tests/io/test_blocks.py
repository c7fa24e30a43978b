"""Models read and written block by block: the bits of `load` and `save`."""

import dataclasses
import json
import logging
import re
import shutil
import tracemalloc
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from sparse_jax import io
from sparse_jax.io import safetensors_file
from sparse_jax.io.names import LINEAR_KERNELS
from sparse_jax.models import LlamaConfig, abstract_params
from sparse_jax.tree import from_paths, leaf_paths
from sparse_jax.types import InputError

UP = "layers/mlp/up/kernel"
ROWS = [{"path": UP, "seconds": 0.5, "damping": None}]


def bits(leaf) -> np.ndarray:
    return np.asarray(leaf).view(np.uint32)


def assert_same_leaves(found, expected):
    found, expected = leaf_paths(found), leaf_paths(expected)
    assert list(found) == list(expected)
    for path, leaf in found.items():
        assert isinstance(leaf, jax.Array) and leaf.dtype == expected[path].dtype
        assert np.array_equal(bits(leaf), bits(expected[path])), path


def assert_same_files(found: Path, expected: Path):
    assert {p.name for p in found.iterdir()} == {p.name for p in expected.iterdir()}
    for path in expected.iterdir():
        assert (found / path.name).read_bytes() == path.read_bytes(), path.name


def take_layer(tree, index):
    return jax.tree.map(lambda leaf: leaf[index], tree)


def layer_masks(masks, index) -> dict:
    return {
        path: mask[index]
        for path, mask in leaf_paths(masks).items()
        if mask is not None and path.startswith("layers/")
    }


def pruned(params) -> tuple[dict, dict]:
    """Params of which each linear but up has lost random weights, and their masks."""
    rng = np.random.default_rng(1)
    leaves, masks = leaf_paths(params), dict.fromkeys(leaf_paths(params))
    for path, leaf in leaves.items():
        if re.fullmatch(LINEAR_KERNELS, path) and path != UP:
            kept = rng.random(leaf.shape) < 0.3
            leaves[path] = jax.device_put(np.where(kept, leaf, np.float32(0)))
            masks[path] = jax.device_put(kept)
    return from_paths(leaves), from_paths(masks)


def write_all(work_dir, params, masks, config, dtype="float32") -> io.BlockWriter:
    writer = io.BlockWriter(work_dir, config, dtype)
    for index in range(writer.n_done, config.n_layers):
        layer = take_layer(params["layers"], index)
        writer.write(index, layer, layer_masks(masks, index), ROWS)
    return writer


@pytest.fixture
def sparse(params) -> tuple[dict, dict]:
    return pruned(params)


@pytest.fixture
def saved(tmp_path, sparse, config) -> Path:
    params, masks = sparse
    io.save(tmp_path / "model", params, config, masks=masks)
    return tmp_path / "model"


@pytest.mark.parametrize("shard_bytes", [10**9, 9_000])
@pytest.mark.parametrize(
    "options", [{}, {"attention_bias": True, "mlp_bias": True, "tie_embeddings": True}]
)
def test_a_model_copied_block_by_block(
    options, shard_bytes, config, make_params, tmp_path
):
    config = dataclasses.replace(config, **options)
    params, masks = pruned(make_params(config))
    files = {"tokenizer_files": {"report.json": b"{}"}}
    io.save(tmp_path / "a", params, config, max_shard_bytes=shard_bytes)
    io.save(tmp_path / "b", params, config, masks=masks, **files)
    reader = io.open_blocks(tmp_path / "a")
    assert reader.config == config and reader.dtype == "float32"
    writer = io.BlockWriter(tmp_path / "work", config, "float32")
    for index in range(3):
        layer = reader.layer(index)
        assert_same_leaves(layer, take_layer(params["layers"], index))
        writer.write(index, layer, layer_masks(masks, index), ROWS)
    writer.finish(tmp_path / "c", reader, extra_files={"report.json": b"{}"})
    assert_same_files(tmp_path / "c", tmp_path / "b")
    for path, leaf in leaf_paths(params).items():
        if not path.startswith("layers/"):
            assert np.array_equal(bits(reader.leaf(path)), bits(leaf))


def test_a_real_model_copied_block_by_block(shared_data, tmp_path):
    source = shared_data / "stories260K-hf"
    model, reader = io.resolve(source), io.open_blocks(source)
    files = model.tokenizer.files
    assert reader.source == model.source and not reader.masked
    assert reader.tokenizer.files == files and reader.layer_masks(0) == {}
    io.save(tmp_path / "a", model.params, model.config, tokenizer_files=files)
    writer = write_all(tmp_path / "work", model.params, {}, model.config)
    writer.finish(tmp_path / "b", reader)
    assert_same_files(tmp_path / "b", tmp_path / "a")


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_is_that_of_save(dtype, saved, sparse, config, tmp_path):
    params, masks = sparse
    io.save(tmp_path / "a", params, config, masks=masks, dtype=dtype)
    reader = io.open_blocks(saved)
    writer = write_all(tmp_path / "work", params, masks, config, dtype)
    writer.finish(tmp_path / "b", reader)
    assert_same_files(tmp_path / "b", tmp_path / "a")
    rounded = io.load(tmp_path / "a")
    assert_same_leaves(writer.layer(1), take_layer(rounded["layers"], 1))
    half = io.open_blocks(tmp_path / "b")
    assert half.dtype == dtype
    assert_same_leaves(half.layer(2), take_layer(rounded["layers"], 2))
    ids = np.array([3, 0])
    expected = rounded["embed"]["embedding"][ids]
    assert np.array_equal(bits(half.embed(ids)), bits(expected))
    # And from half precision: the leaves outside the blocks are rounded only once.
    write_all(tmp_path / "work32", rounded, masks, config).finish(tmp_path / "c", half)
    io.save(tmp_path / "d", rounded, config, masks=masks)
    assert_same_files(tmp_path / "c", tmp_path / "d")


def test_the_dtype_of_mixed_files_is_the_widest(saved):
    tensors = load_file(saved / "model.safetensors")
    name = "model.norm.weight"
    tensors = {key: tensor.astype(np.float16) for key, tensor in tensors.items()}
    rotary = {"model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(2, np.float32)}
    save_file(tensors | rotary, saved / "model.safetensors")
    assert io.open_blocks(saved).dtype == "float16"
    save_file(
        tensors | {name: tensors[name].astype(np.float32)}, saved / "model.safetensors"
    )
    assert io.open_blocks(saved).dtype == "float32"


def test_masks_of_a_file_are_read_by_block(saved, sparse):
    reader = io.open_blocks(saved)
    assert reader.masked and reader.source == io.resolve(saved).source
    for index in range(3):
        expected = layer_masks(sparse[1], index)
        found = reader.layer_masks(index)
        assert set(found) == set(expected) and UP not in found
        for path, mask in found.items():
            assert mask.dtype == bool and np.array_equal(mask, expected[path])


def test_masks_outside_the_blocks_are_kept(tmp_path, sparse, config):
    params, masks = sparse
    kept = jnp.arange(16 * 48).reshape(16, 48) % 3 > 0
    params["lm_head"]["kernel"] = jnp.where(kept, params["lm_head"]["kernel"], 0)
    masks["lm_head"]["kernel"] = kept
    io.save(tmp_path / "a", params, config, masks=masks)
    reader = io.open_blocks(tmp_path / "a")
    write_all(tmp_path / "work", params, masks, config)
    writer = io.BlockWriter(tmp_path / "work", config, "float32")
    writer.finish(tmp_path / "b", reader)
    assert_same_files(tmp_path / "b", tmp_path / "a")


def test_masks_of_zeros_are_those_of_resolve(saved, caplog):
    (saved / "masks.safetensors").unlink()
    expected = io.resolve(saved)
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        reader = io.open_blocks(saved)
        assert reader.masked and reader.source == expected.source
        found = reader.layer_masks(2)
    assert len(caplog.records) == 1 and "from exact zeros" in caplog.text
    expected = layer_masks(expected.masks, 2)
    assert set(found) == set(expected) and found[UP].all()
    assert all(np.array_equal(found[path], expected[path]) for path in found)


def test_the_smallest_numbers_are_not_zero(saved, sparse, config):
    """XLA takes them for zero; a mask that drops them would not fit the weights."""
    params, _ = sparse
    tiny = jnp.full_like(params["layers"]["mlp"]["up"]["kernel"], 1e-42)
    params["layers"]["mlp"]["up"]["kernel"] = tiny
    io.save(saved, params, config, overwrite=True)
    assert io.open_blocks(saved).layer_masks(0)[UP].all()


def test_masks_of_other_weights_are_refused(saved, config):
    tensors = load_file(saved / "model.safetensors")
    name = "model.layers.1.mlp.down_proj.weight"
    tensors[name] = np.ones_like(tensors[name])
    save_file(tensors, saved / "model.safetensors")
    reader = io.open_blocks(saved)
    reader.layer_masks(0)
    with pytest.raises(InputError, match=r"weights of 'model\.layers\.1") as by_block:
        reader.layer_masks(1)
    with pytest.raises(InputError) as whole:
        io.resolve(saved)
    assert str(by_block.value) == str(whole.value)


def test_embeddings_are_read_by_row(saved, sparse, monkeypatch):
    monkeypatch.setattr(safetensors_file, "_PANEL", 3 * 16 * 4)  # three rows
    table = np.asarray(sparse[0]["embed"]["embedding"])
    head = np.asarray(sparse[0]["lm_head"]["kernel"])
    reader = io.open_blocks(saved)
    ids = np.array([[47, 0, 1, 2], [3, 9, 9, 46], [5, 0, 47, 11]], np.int32)
    assert np.array_equal(reader.embed(ids), table[ids])
    assert np.array_equal(reader.embed(jnp.array(7)), table[7])
    assert reader.embed(np.zeros((2, 0), int)).shape == (2, 0, 16)
    assert np.array_equal(reader.rows("embed/embedding", 5, 48), table[5:])
    assert np.array_equal(reader.rows("lm_head/kernel", 7, 9), head.T[7:9])
    for wrong in (-1, 48):
        with pytest.raises(InputError, match=rf"in \[0, 48\), found {wrong}; is this"):
            reader.embed(np.array([3, wrong, 5]))


def test_run_and_stage_directories(saved, tmp_path):
    stage = tmp_path / "run" / "2_train"
    shutil.copytree(saved, stage / "model")
    (tmp_path / "run" / "recipe.json").write_text(json.dumps({"final": "2_train"}))
    for path in (tmp_path / "run", stage):
        reader = io.open_blocks(path)
        assert reader.directory == stage / "model"
        assert reader.source == io.resolve(path).source


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: (d / "config.json").unlink(), r"no config\.json"),
        (lambda d: edit_config(d, model_type="mistral"), "'mistral' is not supported"),
        (lambda d: edit_config(d, num_hidden_layers=4), r"layers\.3.* is missing"),
        (lambda d: edit_config(d, intermediate_size=25), r"must have shape \[16, 25\]"),
        (lambda d: edit_config(d, num_hidden_layers=2), "is not part of the model"),
        (lambda d: cut(d / "model.safetensors"), r"model\.safetensors: truncated"),
        (lambda d: cut(d / "masks.safetensors"), r"masks\.safetensors: truncated"),
    ],
)
def test_a_bad_model_is_refused_before_any_work(change, message, saved):
    change(saved)
    for read in (io.open_blocks, io.resolve):
        with pytest.raises(InputError, match=message):
            read(saved)


def edit_config(directory: Path, **fields):
    values = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(values | fields))


def cut(path: Path):
    path.write_bytes(path.read_bytes()[:-1])


def test_a_size_and_no_model_are_refused(tmp_path):
    with pytest.raises(InputError, match="'llama2_7b' is a size, which has no weights"):
        io.open_blocks("llama2_7b")
    with pytest.raises(InputError, match="neither an existing directory nor a size"):
        io.open_blocks(tmp_path / "gone")


def test_a_file_that_vanishes_is_named(saved):
    reader = io.open_blocks(saved)
    (saved / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"model\.safetensors: cannot be read"):
        reader.layer(0)


def test_a_tokenizer_larger_than_the_vocabulary(saved, shared_data):
    shutil.copy(shared_data / "stories260K-hf" / "tokenizer.json", saved)
    with pytest.raises(InputError, match=r"has 512 tokens .* vocabulary holds 48"):
        io.open_blocks(saved).tokenizer  # noqa: B018


# --- Writing -------------------------------------------------------------------------


def test_what_is_written_is_read_back(tmp_path, sparse, config):
    params, masks = sparse
    writer = write_all(tmp_path / "work", params, masks, config)
    for index in range(3):
        assert_same_leaves(writer.layer(index), take_layer(params["layers"], index))
        expected = layer_masks(masks, index)
        found = writer.layer_masks(index)
        assert set(found) == set(expected) and writer.rows(index) == ROWS
        assert all(np.array_equal(found[p], expected[p]) for p in found)


def test_work_is_continued_after_a_kill(tmp_path, saved, sparse, config, monkeypatch):
    params, masks = sparse
    writer = io.BlockWriter(tmp_path / "work", config, "float32")
    layers = [take_layer(params["layers"], index) for index in range(3)]
    writer.write(0, layers[0], layer_masks(masks, 0), ROWS)
    partial = tmp_path / "work" / ".block-00001.safetensors.partial"

    class Killed(BaseException):
        pass

    def kill(path, tensors, metadata):
        assert path == partial
        path.write_bytes(b"half a block")
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(safetensors_file, "write", kill)
        patch.setattr(Path, "unlink", lambda *_, **__: None)  # a kill cleans nothing
        with pytest.raises(Killed):
            writer.write(1, layers[1], layer_masks(masks, 1), ROWS)
    assert partial.exists()
    writer = io.BlockWriter(tmp_path / "work", config, "float32")
    assert writer.n_done == 1 and not partial.exists()
    with pytest.raises(ValueError, match="block 1 is missing"):
        writer.finish(tmp_path / "a", io.open_blocks(saved))
    write_all(tmp_path / "work", params, masks, config)
    writer = io.BlockWriter(tmp_path / "work", config, "float32")
    assert writer.n_done == 3
    writer.finish(tmp_path / "a", io.open_blocks(saved))
    assert_same_files(tmp_path / "a", saved)


def test_a_damaged_block_is_named_and_can_be_made_anew(tmp_path, saved, sparse, config):
    params, masks = sparse
    write_all(tmp_path / "work", params, masks, config)
    path = tmp_path / "work" / "block-00001.safetensors"
    cut(path)
    with pytest.raises(InputError, match=r"block-00001\.safetensors: .* delete it"):
        io.BlockWriter(tmp_path / "work", config, "float32")
    path.unlink()
    writer = io.BlockWriter(tmp_path / "work", config, "float32")
    assert writer.n_done == 1
    writer.write(1, take_layer(params["layers"], 1), layer_masks(masks, 1), ROWS)
    assert writer.n_done == 3
    writer.finish(tmp_path / "a", io.open_blocks(saved))
    assert_same_files(tmp_path / "a", saved)


@pytest.mark.parametrize(
    ("dtype", "changes"),
    [("bfloat16", {}), ("float32", {"d_ff": 28}), ("float32", {"norm_eps": 1e-4})],
)
def test_blocks_of_another_model_are_refused(dtype, changes, tmp_path, sparse, config):
    params, masks = sparse
    write_all(tmp_path / "work", params, masks, config)
    config = dataclasses.replace(config, **changes)
    with pytest.raises(InputError, match=r"block-00000.*belongs to another model"):
        io.BlockWriter(tmp_path / "work", config, dtype)


def test_blocks_with_other_masks_or_numbers_are_refused(tmp_path, sparse, config):
    params, masks = sparse
    write_all(tmp_path / "a", params, masks, config)
    write_all(tmp_path / "b", params, {}, config)
    name = "block-00001.safetensors"
    shutil.copy(tmp_path / "b" / name, tmp_path / "a")
    with pytest.raises(InputError, match=rf"{name}: belongs to another"):
        io.BlockWriter(tmp_path / "a", config, "float32")
    shutil.copy(tmp_path / "a" / "block-00002.safetensors", tmp_path / "a" / name)
    with pytest.raises(InputError, match=rf"{name}: belongs to another"):
        io.BlockWriter(tmp_path / "a", config, "float32")


def test_what_does_not_fit_is_a_bug(tmp_path, params, sparse, config):
    writer = io.BlockWriter(tmp_path / "work", config, "float32")
    layer, masks = take_layer(params["layers"], 0), layer_masks(sparse[1], 0)
    with pytest.raises(ValueError, match="a pruned weight is not zero"):
        writer.write(0, layer, masks, [])
    with pytest.raises(ValueError, match="do not fit the config"):
        writer.write(0, {"mlp": layer["mlp"]}, {}, [])
    with pytest.raises(ValueError, match="fits no leaf"):
        writer.write(0, layer, {UP: masks["layers/attention/q/kernel"]}, [])
    assert writer.n_done == 0 and not any(writer.work_dir.iterdir())
    writer.write(1, layer, {}, [])
    with pytest.raises(ValueError, match="blocks 1 and 0 differ in the leaves"):
        writer.write(0, take_layer(sparse[0]["layers"], 0), masks, [])


def test_weights_that_overflow_float16_are_refused(tmp_path, saved, params, config):
    layer = take_layer(params["layers"], 0)
    bad = layer | {"mlp_norm": {"scale": layer["mlp_norm"]["scale"].at[3].set(1e5)}}
    writer = io.BlockWriter(tmp_path / "work", config, "float16")
    message = r"mlp_norm/scale: .* 1e\+05 does not fit into float16"
    with pytest.raises(InputError, match=message):
        writer.write(0, bad, {}, [])
    assert not any(writer.work_dir.iterdir())
    tensors = load_file(saved / "model.safetensors")
    tensors["lm_head.weight"][47, 3] = -1e5
    save_file(tensors, saved / "model.safetensors")
    writer = write_all(tmp_path / "work", params, {}, config, "float16")
    with pytest.raises(InputError, match=r"lm_head/kernel: .* does not fit"):
        writer.finish(tmp_path / "a", io.open_blocks(saved))
    assert not (tmp_path / "a").exists()


def test_bad_places_and_names_are_refused(tmp_path, saved, sparse, config):
    params, masks = sparse
    writer = write_all(tmp_path / "work", params, masks, config)
    reader = io.open_blocks(saved)
    with pytest.raises(InputError, match="is not empty; choose another place"):
        writer.finish(saved, reader)
    for name in ("config.json", "../x", "masks.safetensors"):
        with pytest.raises(InputError, match="cannot have this name"):
            writer.finish(tmp_path / "a", reader, extra_files={name: b""})
    with pytest.raises(InputError, match="dtype must be one of"):
        io.BlockWriter(tmp_path / "other", config, "int8")
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="file: cannot be written"):
        io.BlockWriter(tmp_path / "file", config, "float32")


def test_a_full_disk_leaves_no_half_block(tmp_path, params, config, monkeypatch):
    writer = io.BlockWriter(tmp_path / "work", config, "float32")

    def full(path, *_):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(safetensors_file, "write", full)
    with pytest.raises(InputError, match=r"cannot be written .No space left"):
        writer.write(0, take_layer(params["layers"], 0), {}, [])
    assert writer.n_done == 0 and not any(writer.work_dir.iterdir())


def test_no_more_than_a_block_and_panels_is_held(tmp_path, monkeypatch):
    """Vocabulary and depth cost nothing but what one block or one panel takes."""
    monkeypatch.setattr(safetensors_file, "_PANEL", 1 << 20)
    config = LlamaConfig(
        vocab_size=32_000, d_model=128, d_ff=256, n_layers=8, n_heads=4
    )
    params = jax.tree.map(
        lambda leaf: np.ones(leaf.shape, np.float32), abstract_params(config)
    )
    io.save(tmp_path / "a", params, config)
    masks = {UP: jnp.ones((128, 256), bool)}
    block = sum(leaf.nbytes for leaf in jax.tree.leaves(params["layers"])) / 8
    panel = 1 << 20
    del params

    def copy():
        reader = io.open_blocks(tmp_path / "a")
        writer = io.BlockWriter(tmp_path / "work", config, "bfloat16")
        assert not reader.masked
        reader.embed(np.arange(64).reshape(8, 8) * 500)
        for index in range(8):
            writer.write(index, reader.layer(index), masks, [])
        writer.finish(tmp_path / "b", reader)
        shutil.rmtree(tmp_path / "b")
        shutil.rmtree(tmp_path / "work")

    copy()  # compiles, and imports what is imported late
    tracemalloc.start()
    copy()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert 0.9 * block < peak < block + 4 * panel
    assert block + 4 * panel < 32_000 * 128 * 4 / 2  # the bar can be missed
