"""launch/bench.py as a user runs it, and what it counts."""

import json

import numpy as np
import pytest

from sparse_jax import io
from sparse_jax.infer import compare, measure, random_model, speed_table
from sparse_jax.io.packed_blocks import unpack
from sparse_jax.models import LlamaConfig
from sparse_jax.types import InputError
from tests.launch.helpers import error_of, launch

CONFIG = LlamaConfig(
    vocab_size=64, d_model=32, d_ff=48, n_layers=1, n_heads=2, max_seq_len=40
)
OPTIONS = {"prompt_tokens": 100, "tokens": 30, "repeats": 1}


@pytest.fixture(autouse=True)
def small_probe(monkeypatch):
    monkeypatch.setattr(measure, "_PROBE", (64, 64))


def test_what_is_read_for_a_token_is_counted():
    """Weights and head by hand, and the keys and values of the whole capacity."""
    model = random_model(CONFIG, "dense_float32")
    numbers = compare(model, ["dense_float32", "dense_int8"], **OPTIONS)
    first, same, int8 = numbers["rows"]
    assert [row["name"] for row in numbers["rows"]] == [
        "as packed",
        "dense_float32",
        "dense_int8",
    ]
    # A prompt of half the context.
    assert (numbers["prompt_tokens"], numbers["tokens"]) == (20, 20)
    weights = 4 * 32 * 32 + 3 * 32 * 48
    assert first["matrix_bytes"] == same["matrix_bytes"] == 4 * weights
    assert first["bits_per_weight"] == 32 and 8 < int8["bits_per_weight"] < 10
    cache = 2 * 40 * 32 * 4
    assert first["bytes_per_token"] == 4 * weights + 4 * 64 * 32 + cache
    for row in numbers["rows"]:
        rate = row["bytes_per_token"] * row["decode"] / numbers["bandwidth"]
        assert row["share_of_limit"] == pytest.approx(rate)
        assert row["speedup"] == pytest.approx(row["decode"] / same["decode"])
        assert row["prefill"] > 0
    text = speed_table(numbers)
    assert len(text.splitlines()) == 6 and f"{int8['decode']:.1f}" in text


def test_a_type_that_cannot_hold_the_zeros_is_refused():
    model = random_model(CONFIG, "dense_float32")
    with pytest.raises(InputError, match="unknown format 'int9'"):
        compare(model, ["dense_float32", "int9"])


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    path = tmp_path_factory.mktemp("bench") / "model"
    params, _ = unpack(random_model(CONFIG, "dense_float32"))
    io.save(path, params, CONFIG)
    return path


def test_the_command_prints_and_writes_the_same_numbers(directory, tmp_path):
    done = launch(
        "bench",
        f"--model={directory}",
        "--against=dense_float32",
        "--tokens=4",
        "--repeats=1",
        f"--json={tmp_path / 'out.json'}",
    )
    assert done.returncode == 0, done.stderr
    numbers = json.loads((tmp_path / "out.json").read_text())
    assert done.stdout == speed_table(numbers) + "\n"
    assert np.isfinite([row["decode"] for row in numbers["rows"]]).all()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--tokens=0"], "tokens must be >= 1, found 0"),
    ],
)
def test_bad_input_is_one_sentence(arguments, sentence, directory):
    done = launch("bench", f"--model={directory}", *arguments)
    assert done.returncode == 2 and sentence in error_of(done)
