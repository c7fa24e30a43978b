"""launch/evaluate.py --tasks as a user runs it."""

import json

import jax
import pytest

from sparse_jax import data, io, models
from sparse_jax.models import LlamaConfig
from tests.launch import helpers

TEXT = "The quick brown fox jumps over the lazy dog. " * 80


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A small model, and the files of two tasks."""
    path = tmp_path_factory.mktemp("tasks")
    tokenizer = data.train_bpe([TEXT], vocab_size=300)
    config = LlamaConfig(
        vocab_size=300, d_model=16, d_ff=24, n_layers=1, n_heads=2, max_seq_len=64
    )
    params = jax.jit(models.init, static_argnums=1)(jax.random.key(0), config)
    io.save(path / "model", params, config, tokenizer_files=tokenizer.files)
    records = {
        "piqa": [
            {"goal": "The quick", "sol1": "fox", "sol2": "dog", "label": n % 2}
            for n in range(6)
        ],
        "gsm8k": [{"question": f"{n} foxes?", "answer": f"#### {n}"} for n in range(6)],
    }
    for name, lines in records.items():
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (path / f"{name}.jsonl").write_text(text)
    return path


def test_prints_and_writes_the_same_numbers(folder, tmp_path):
    out, samples = tmp_path / "out.json", tmp_path / "samples.jsonl"
    done = helpers.launch(
        "evaluate",
        f"--model={folder / 'model'}",
        "--tasks=piqa,gsm8k",
        f"--data_dir={folder}",
        "--shots=1",
        "--limit=4",
        "--max_tokens=5",
        f"--json={out}",
        f"--samples={samples}",
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(out.read_text())
    rows = [line.split() for line in done.stdout.splitlines()]
    for task in report["tasks"]:
        assert task["documents"] == 4 and task["shots"] == 1
        for name, estimate in task["metrics"].items():
            [row] = [row for row in rows if row[:2] == [task["task"], name]]
            assert row[2] == f"{estimate['value']:.4f}"
            assert row[3] == f"{estimate['stderr']:.4f}"
    assert "examples from the same file" in done.stdout
    lines = [json.loads(line) for line in samples.read_text().splitlines()]
    assert [line["task"] for line in lines] == ["piqa"] * 4 + ["gsm8k"] * 4
    accuracy = sum(line["metrics"]["acc"] for line in lines[:4]) / 4
    assert report["tasks"][0]["metrics"]["acc"]["value"] == accuracy


def test_bad_input_is_one_sentence(folder):
    model, where = f"--model={folder / 'model'}", f"--data_dir={folder}"
    done = helpers.launch("evaluate", model, where, "--tasks=pica")
    sentence = helpers.error_of(done)
    assert "there is no task 'pica'; did you mean piqa" in sentence
