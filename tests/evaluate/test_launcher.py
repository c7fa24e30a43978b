"""launch/evaluate.py as a user runs it."""

import json
import math
import os
import pathlib
import subprocess
import sys

import jax
import pytest

from sparse_jax import data, io, models
from sparse_jax.models import LlamaConfig

LAUNCHER = pathlib.Path(__file__).parents[2] / "launch" / "evaluate.py"
TEXT = "The quick brown fox jumps over the lazy dog. " * 80


def launch(*arguments):
    return subprocess.run(
        [sys.executable, str(LAUNCHER), *arguments],
        capture_output=True,
        text=True,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a small model and a text."""
    path = tmp_path_factory.mktemp("launcher")
    tokenizer = data.train_bpe([TEXT], vocab_size=300)
    config = LlamaConfig(
        vocab_size=512, d_model=32, d_ff=48, n_layers=1, n_heads=2, max_seq_len=64
    )
    params = models.init(jax.random.key(0), config)
    io.save(path / "model", params, config, tokenizer_files=tokenizer.files)
    (path / "text.txt").write_text(TEXT)
    return path


def test_prints_and_writes_the_same_numbers(folder):
    out = folder / "out.json"
    done = launch(
        f"--model={folder / 'model'}",
        f"--data={folder / 'text.txt'}",
        "--window=32",
        f"--json={out}",
    )
    assert done.returncode == 0, done.stderr
    numbers = json.loads(out.read_text())
    assert numbers["loss"] == pytest.approx(math.log(512), rel=0.02)
    assert numbers["perplexity"] == math.exp(numbers["loss"])
    assert (numbers["window"], numbers["stride"]) == (32, 32)
    assert 0 < numbers["bytes"] < len(TEXT)
    assert f"{numbers['loss']:.6f}" in done.stdout
    assert f"{numbers['tokens']:,}" in done.stdout


def test_bad_input_is_one_sentence(folder):
    done = launch(f"--model={folder / 'model'}", f"--data={folder / 'none.txt'}")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "none.txt does not exist" in done.stderr
