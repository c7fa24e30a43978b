"""Hugging Face directories: bit-equal both ways, little memory, clear errors."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from sparse_jax import io
from sparse_jax.models import LlamaConfig, abstract_params
from sparse_jax.tree import leaf_paths
from sparse_jax.types import InputError

Q0 = "model.layers.0.self_attn.q_proj.weight"


def assert_bit_equal(found, expected):
    found, expected = leaf_paths(found), leaf_paths(expected)
    assert list(found) == list(expected)
    for path, leaf in found.items():
        assert leaf.dtype == jnp.float32 and isinstance(leaf, jax.Array)
        left, right = (np.asarray(x).view(np.uint32) for x in (leaf, expected[path]))
        assert np.array_equal(left, right), path


@pytest.fixture
def saved(tmp_path, params, config) -> Path:
    io.save(tmp_path / "model", params, config)
    return tmp_path / "model"


def edit(directory: Path, change) -> None:
    """Rewrites the weights of a directory, with the public library."""
    tensors = load_file(directory / "model.safetensors")
    change(tensors)
    save_file(tensors, directory / "model.safetensors")


@pytest.mark.parametrize("shard_bytes", [10**9, 9_000, 1])
@pytest.mark.parametrize(
    "options", [{}, {"attention_bias": True, "mlp_bias": True, "tie_embeddings": True}]
)
def test_export_then_import_is_bit_equal(
    shard_bytes, options, config, make_params, tmp_path
):
    config = dataclasses.replace(config, **options)
    params = make_params(config)
    params["final_norm"]["scale"] = jnp.array([-0.0, 1e-42, jnp.inf, *range(13)])
    io.save(tmp_path / "a", params, config, max_shard_bytes=shard_bytes)
    assert io.load_config(tmp_path / "a") == config
    assert_bit_equal(io.load(tmp_path / "a"), params)


def test_import_then_export_is_bit_equal(shared_data, tmp_path):
    source = shared_data / "stories260K-hf"
    config = io.load_config(source)
    io.save(tmp_path / "a", io.load(source), config)
    expected = load_file(source / "model.safetensors")
    found = load_file(tmp_path / "a" / "model.safetensors")
    assert set(found) == set(expected)
    for name, tensor in found.items():
        assert np.array_equal(tensor.view(np.uint32), expected[name].view(np.uint32))


def test_tensors_are_laid_out_as_hugging_face_has_them(saved, params):
    tensors = load_file(saved / "model.safetensors")
    expected = np.asarray(params["layers"]["attention"]["k"]["kernel"][1]).T
    assert np.array_equal(tensors["model.layers.1.self_attn.k_proj.weight"], expected)
    expected = np.asarray(params["lm_head"]["kernel"]).T
    assert np.array_equal(tensors["lm_head.weight"], expected)


def test_shards_respect_their_limit_and_the_index(tmp_path, params, config):
    io.save(tmp_path / "a", params, config, max_shard_bytes=9_000)
    index = json.loads((tmp_path / "a/model.safetensors.index.json").read_text())
    files = sorted((tmp_path / "a").glob("*.safetensors"))
    assert files[0].name == f"model-00001-of-{len(files):05d}.safetensors"
    assert len(files) > 2
    sizes = [sum(t.nbytes for t in load_file(file).values()) for file in files]
    assert max(sizes) <= 9_000
    assert index["metadata"]["total_size"] == sum(sizes)
    assert set(index["weight_map"].values()) == {file.name for file in files}


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_is_rounded_once(dtype, tmp_path, params, config):
    io.save(tmp_path / "a", params, config, dtype=dtype)
    rounded = jax.tree.map(lambda x: x.astype(dtype).astype(jnp.float32), params)
    loaded = io.load(tmp_path / "a")
    assert_bit_equal(loaded, rounded)
    io.save(tmp_path / "b", loaded, config, dtype=dtype)
    files = [tmp_path / name / "model.safetensors" for name in "ab"]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_weights_that_overflow_float16_are_refused(tmp_path, params, config):
    params["final_norm"]["scale"] = params["final_norm"]["scale"].at[3].set(1e5)
    with pytest.raises(InputError, match=r"final_norm/scale: .* 1e\+05 does not fit"):
        io.save(tmp_path / "a", params, config, dtype="float16")
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_dtype_is_refused(tmp_path, params, config):
    with pytest.raises(Exception, match="dtype"):
        io.save(tmp_path / "a", params, config, dtype="int8")


def test_files_carried_along(tmp_path, params, config):
    files = {"tokenizer.json": b"{}", "tokenizer.model": b"\x00"}
    io.save(tmp_path / "a", params, config, tokenizer_files=files)
    for name, content in files.items():
        assert (tmp_path / "a" / name).read_bytes() == content
    generation = json.loads((tmp_path / "a/generation_config.json").read_text())
    assert generation["eos_token_id"] == config.eos_token_id
    for name in ("../x", "a/b", "config.json", "model.safetensors"):
        with pytest.raises(InputError, match="cannot have this name"):
            io.save(tmp_path / "b", params, config, tokenizer_files={name: b""})
    assert not (tmp_path / "b").exists() and not (tmp_path / "x").exists()


def test_nothing_is_overwritten_by_accident(saved, params, config):
    before = {p.name: p.read_bytes() for p in saved.iterdir()}
    with pytest.raises(InputError, match="model: is not empty"):
        io.save(saved, params, config)
    assert before == {p.name: p.read_bytes() for p in saved.iterdir()}
    doubled = jax.tree.map(lambda x: 2 * x, params)
    io.save(saved, doubled, config, overwrite=True)
    assert_bit_equal(io.load(saved), doubled)
    assert [p.name for p in saved.parent.iterdir()] == ["model"]


def test_a_directory_that_is_no_model_is_never_overwritten(tmp_path, params, config):
    (tmp_path / "a").mkdir()
    io.save(tmp_path / "a", params, config)  # empty is fine
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "thesis.tex").touch()
    with pytest.raises(InputError, match=r"holds no config\.json"):
        io.save(tmp_path / "b", params, config, overwrite=True)
    (tmp_path / "c").touch()
    with pytest.raises(InputError, match="is a file"):
        io.save(tmp_path / "c", params, config)


def test_a_failed_save_leaves_the_old_model(saved, params, config, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("sparse_jax.io.safetensors_file.write", full)
    with pytest.raises(InputError, match=r"cannot be written .No space left"):
        io.save(saved, params, config, overwrite=True)
    assert_bit_equal(io.load(saved), params)
    assert [p.name for p in saved.parent.iterdir()] == ["model"]


def test_what_a_killed_save_left_is_cleared(tmp_path, params, config):
    (tmp_path / ".a.partial").mkdir()
    (tmp_path / ".a.partial" / "model.safetensors").write_bytes(b"half")
    io.save(tmp_path / "a", params, config)
    assert [p.name for p in tmp_path.iterdir()] == ["a"]
    assert_bit_equal(io.load(tmp_path / "a"), params)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_disk_is_named(tmp_path, params, config):
    tmp_path.chmod(0o555)
    with pytest.raises(InputError, match=r"cannot be written .Permission denied"):
        io.save(tmp_path / "a", params, config)


def test_params_of_another_config_are_a_bug(tmp_path, params, config):
    with pytest.raises(ValueError, match="do not fit the config"):
        io.save(tmp_path / "a", params, dataclasses.replace(config, d_ff=28))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(Q0), rf"'{Q0}' of shape \[16, 16\] is missing"),
        (lambda t: t.update({Q0: t[Q0][:8]}), r"shape \[16, 16\].*found \[8, 16\]"),
        (lambda t: t.update({Q0: t[Q0].astype(np.float64)}), "and F64"),
        (lambda t: t.update(extra=t[Q0]), r"'extra' of shape \[16, 16\] is not part"),
        (lambda t: t.pop("lm_head.weight"), r"'lm_head.weight' of shape \[48, 16\]"),
        (
            lambda t: t.update({Q0.replace("weight", "bias"): t[Q0][0]}),
            "q_proj.bias' of shape",
        ),
    ],
)
def test_wrong_tensors_are_named(change, message, saved):
    edit(saved, change)
    with pytest.raises(InputError, match=message):
        io.load(saved)


def test_the_rotary_table_of_old_checkpoints_is_ignored(saved, params):
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    edit(saved, lambda t: t.update({name: np.ones(2, np.float32)}))
    assert_bit_equal(io.load(saved), params)


def test_a_stored_copy_of_a_tied_head(tmp_path, config, make_params):
    config = dataclasses.replace(config, tie_embeddings=True)
    params = make_params(config)
    io.save(tmp_path / "a", params, config)
    embedding = "model.embed_tokens.weight"
    edit(tmp_path / "a", lambda t: t.update({"lm_head.weight": t[embedding].copy()}))
    assert_bit_equal(io.load(tmp_path / "a"), params)
    edit(tmp_path / "a", lambda t: t.update({"lm_head.weight": t[embedding] + 1}))
    with pytest.raises(InputError, match=r"'lm_head.weight' differs .* is true"):
        io.load(tmp_path / "a")


def test_a_truncated_file_is_named(saved):
    path = saved / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InputError, match=r"model\.safetensors: truncated"):
        io.load(saved)


def test_a_config_of_absurd_size_costs_nothing(saved):
    config = json.loads((saved / "config.json").read_text())
    config["num_hidden_layers"] = 3_000
    config["intermediate_size"] = 10**9
    (saved / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=r"must have shape \[1000000000, 16\]|missing"):
        io.load(saved)


def test_pickles_are_never_loaded(saved):
    (saved / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"no model\.safetensors and no"):
        io.load(saved)
    (saved / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    with pytest.raises(InputError, match=r"pytorch_model\.bin, a pickle.*safetensors"):
        io.load(saved)


@pytest.fixture
def sharded(tmp_path, params, config) -> Path:
    io.save(tmp_path / "shards", params, config, max_shard_bytes=9_000)
    return tmp_path / "shards"


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("../model/model.safetensors", "outside"),
        ("/etc/passwd", "outside"),
        (3, "outside"),
        ("gone.safetensors", r"gone\.safetensors: cannot be read"),
        ("model-00002-of-00003.safetensors", rf"'{Q0}' is missing|cannot be read"),
    ],
)
def test_a_bad_index_is_refused(file, message, sharded):
    path = sharded / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"][Q0] = file
    path.write_text(json.dumps(index))
    with pytest.raises(InputError, match=message):
        io.load(sharded)


def test_an_index_without_a_map_is_refused(sharded):
    (sharded / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(InputError, match="'weight_map' is missing or empty"):
        io.load(sharded)


def test_a_missing_shard_is_named(sharded):
    sorted(sharded.glob("model-*"))[1].unlink()
    with pytest.raises(InputError, match=r"model-00002-of-.*cannot be read"):
        io.load(sharded)


def test_leaves_arrive_with_their_sharding(saved, params, config):
    device = jax.sharding.SingleDeviceSharding(jax.devices()[-1])
    loaded = io.load(saved, config, shardings=jax.tree.map(lambda _: device, params))
    assert all(leaf.sharding == device for leaf in jax.tree.leaves(loaded))
    assert_bit_equal(loaded, params)


def test_a_loaded_leaf_can_be_donated(saved, params):
    """Its memory came from NumPy; a step that donates it must not be harmed."""
    loaded = io.load(saved)
    step = jax.jit(lambda x: x + 1, donate_argnums=0)
    found = step(loaded["embed"]["embedding"])
    assert np.array_equal(found, params["embed"]["embedding"] + 1)


MEASURE = """
import resource, sys
import jax, numpy as np
from sparse_jax import io
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
jax.device_put(np.zeros(3))
start = peak()
params = jax.block_until_ready(io.load(sys.argv[1]))
loaded = peak()
if len(sys.argv) > 2:
    io.save(sys.argv[2], params, io.load_config(sys.argv[1]))
print(loaded - start, peak() - loaded, sum(x.nbytes for x in jax.tree.leaves(params)))
"""


def measure(*arguments) -> tuple[float, float]:
    """Memory that load and save add at their peaks, over the float32 model's size."""
    output = subprocess.run(
        [sys.executable, "-c", MEASURE, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
    )
    load, save, size = map(int, output.stdout.split())
    assert size > 200e6
    return load / size, save / size


def test_no_second_copy_of_the_model_is_held(tmp_path):
    config = LlamaConfig(
        vocab_size=8_000, d_model=1024, d_ff=2816, n_layers=4, n_heads=8
    )
    params = jax.tree.map(
        lambda leaf: np.full(leaf.shape, 0.5, np.float32),
        abstract_params(config),
    )
    io.save(tmp_path / "a", params, config)
    load, save = measure(tmp_path / "a", tmp_path / "b")
    assert load < 1.15 and save < 0.3
    io.save(tmp_path / "c", params, config, dtype="bfloat16", max_shard_bytes=4 * 10**7)
    assert measure(tmp_path / "c")[0] < 1.15
    shutil.rmtree(tmp_path)  # half a gigabyte
