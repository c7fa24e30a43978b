"""launch/export.py as a user runs it."""

import json

import jax
import jax.numpy as jnp
import pytest

from sparse_jax import data, io, models
from sparse_jax.models import LlamaConfig
from tests.launch.helpers import error_of, launch

TEXT = "The quick brown fox jumps over the lazy dog, again and again. " * 40


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model in bfloat16, half of it zero, of which 16 does not divide `down`."""
    path = tmp_path_factory.mktemp("export")
    tokenizer = data.train_bpe([TEXT], vocab_size=280)
    config = LlamaConfig(
        vocab_size=280, d_model=32, d_ff=44, n_layers=2, n_heads=2, max_seq_len=32
    )
    params = jax.jit(models.init, static_argnums=1)(jax.random.key(0), config)
    layers = params["layers"]
    for name, leaf in (("up", layers["mlp"]), ("down", layers["mlp"])):
        kernel = leaf[name]["kernel"]
        odd = jnp.arange(kernel.shape[1])[:, None] % 2
        leaf[name]["kernel"] = kernel * odd
    files = tokenizer.files
    io.save(path / "model", params, config, dtype="bfloat16", tokenizer_files=files)
    (path / "test.txt").write_text(TEXT[::-1])
    return path


def test_the_command_prints_and_writes_the_same_numbers(folder, tmp_path):
    done = launch(
        "export",
        f"--model={folder / 'model'}",
        "--format=auto",
        f"--out={tmp_path / 'model.packed'}",
        f"--evaluate={folder / 'test.txt'}",
        "--window=16",
        f"--json={tmp_path / 'out.json'}",
    )
    assert done.returncode == 0, done.stderr
    numbers = json.loads((tmp_path / "out.json").read_text())
    formats = {row["path"]: row["format"] for row in numbers["tensors"]}
    assert formats["layers/mlp/up/kernel"] == "n16_bfloat16"
    assert formats["layers/mlp/down/kernel"] == "bitmask_bfloat16"
    assert formats["layers/mlp/gate/kernel"] == "dense_bfloat16"
    assert "44 inputs, not a multiple of 16" in done.stdout
    before, after = numbers["loss"]["before"], numbers["loss"]["after"]
    assert before["window"] == 16  # and nothing was rounded:
    assert before["loss"] == pytest.approx(after["loss"], rel=1e-5)
    assert f"{before['loss']:.6f} before, {after['loss']:.6f} after" in done.stdout
    size = (tmp_path / "model.packed").stat().st_size
    assert numbers["totals"]["file"]["bytes_after"] == size
    assert f"{size / 1e3:,.1f}" in done.stdout
    packed = io.read_packed(tmp_path / "model.packed")
    assert (
        packed.tokenizer.fingerprint
        == io.resolve(folder / "model").tokenizer.fingerprint
    )


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--format=int8"], "unknown format 'int8'; expected one of dense_float32, "),
        (
            ["--format=n16_int8"],
            "n16_int8: the matrix cannot be held: row 0, inputs 0 t",
        ),
    ],
)
def test_bad_input_is_one_sentence_and_leaves_no_file(
    arguments, sentence, folder, tmp_path
):
    out = tmp_path / "model.packed"
    done = launch("export", f"--model={folder / 'model'}", f"--out={out}", *arguments)
    assert done.returncode == 2 and sentence in error_of(done)
    assert list(tmp_path.iterdir()) == []
