"""launch/simulate.py as a user runs it: its tables, its files, its refusals."""

import json

import jax
import numpy as np
import pytest

from sparse_jax import io, models
from sparse_jax.models import LlamaConfig
from sparse_jax.report import dataflow_files, dataflow_summary
from sparse_jax.tree import from_paths, leaf_paths
from tests.launch.helpers import launch
from tests.launch.test_bad_input import drive

CONFIG = LlamaConfig(
    vocab_size=64, d_model=32, d_ff=48, n_layers=3, n_heads=2, max_seq_len=40
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A dense model, and one with three quarters zeros in every linear."""
    path = tmp_path_factory.mktemp("simulate")
    params = models.init(jax.random.key(0), CONFIG)
    io.save(path / "dense", params, CONFIG)
    rng = np.random.default_rng(0)
    leaves = {
        name: leaf * (rng.random(leaf.shape) < 0.25) if leaf.ndim == 3 else leaf
        for name, leaf in leaf_paths(params).items()
    }
    io.save(path / "pruned", from_paths(leaves), CONFIG)
    return path


def test_a_directory_is_simulated_with_its_own_masks(folder, tmp_path):
    done = launch(
        "simulate",
        f"--model={folder / 'pruned'}",
        "--batch=64",
        f"--json={tmp_path / 'out.json'}",
        f"--out={tmp_path / 'out'}",
    )
    assert done.returncode == 0, done.stderr
    numbers = json.loads((tmp_path / "out.json").read_text())
    assert done.stdout == dataflow_summary(numbers) + "\n"
    (row,) = numbers["rows"]
    assert row["masks"] == "model" and len(row["by_layer"]) == 3
    assert len({layer["seconds"] for layer in row["by_layer"]}) == 3
    assert row["sparsity"] == pytest.approx(0.75, abs=0.01)
    assert 1 < row["matrices"] < row["ideal"] == 1 / (1 - row["sparsity"])
    assert numbers["work"]["tokens"] == 64 * 40 and numbers["sensitivity"]
    written = {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir()}
    assert written == dataflow_files(numbers)
    assert {"simulation.md", "speedup.png", "layers.png"} <= {*written}


REFUSALS = {
    "machine": (
        ["--machine=cs9", "--model=tiny"],
        "machine 'cs9' is unknown; choose one of ['cs2', 'cs3']",
    ),
    "sparsity": (
        ["--model=tiny", "--sparsity=0.5,1.0"],
        "sparsity must be in [0, 1), found 1.0",
    ),
    "no number": (
        ["--model=tiny", "--sparsity=half"],
        "sparsity must be a number in [0, 1), found 'half'",
    ),
    "masks": (
        ["--model=tiny", "--masks=random"],
        "masks 'random' is unknown; choose one of ['uniform', 'balanced', 'sparsegpt']",
    ),
    "pattern": (
        ["--model=tiny", "--masks=2:4", "--sparsity=0.7"],
        "masks '2:4' fixes a sparsity of its own, found 0.7 beside it",
    ),
    "batch": (
        ["--model=llama2_7b", "--batch=30"],
        "batch: the activations of 30 x 4096 tokens take 50.5 GB, 1.45 times the "
        "34.8 GB that cs3 has for them; at most 20 sequences fit",
    ),
    "context": (
        ["--model=llama2_7b", "--context=8192"],
        "a sequence of 8192 tokens is longer than the model allows (4096); shorten it "
        "or raise model.max_seq_len",
    ),
    "systems": (
        ["--model=tiny", "--systems=0"],
        "systems must be at least 1, found 0",
    ),
    "dense": (
        ["--model={0}/dense"],
        "{0}/dense is dense (Hugging Face directory {0}/dense; masks: none, dense (0 "
        "of 26112 linear weights are zero)); name a pruned model, or set --sparsity to "
        "draw masks for this one",
    ),
    "no model": (["--model={0}/none"], "'{0}/none' is neither an existing directory"),
    "mode": (
        ["--model=tiny", "--mode=chat"],
        "flag --mode=chat: value should be one of <training|prefill|decode>",
    ),
}


def test_what_cannot_be_simulated_is_one_sentence(folder):
    commands = {
        name: ["simulate", *(argument.format(folder) for argument in arguments)]
        for name, (arguments, _) in REFUSALS.items()
    }
    for name, code, lines in drive(commands, folder):
        (line,) = lines
        expected = REFUSALS[name][1].format(folder)
        assert code == "2" and line.startswith(f"error: {expected}"), line
