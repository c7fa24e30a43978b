"""launch/generate.py and launch/bench.py as a user runs them."""

import json

import jax
import pytest

from sparse_jax import data, io, models
from sparse_jax.infer import Engine, pack_checkpoint
from sparse_jax.models import LlamaConfig
from tests.launch.helpers import error_of, launch

TEXT = "The quick brown fox jumps over the lazy dog, again and again. " * 40


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model with a tokenizer, as a directory, packed, and without the tokenizer."""
    path = tmp_path_factory.mktemp("generate")
    tokenizer = data.train_bpe([TEXT], vocab_size=280)
    config = LlamaConfig(
        vocab_size=280, d_model=32, d_ff=48, n_layers=1, n_heads=2, max_seq_len=64
    )
    params = jax.jit(models.init, static_argnums=1)(jax.random.key(0), config)
    io.save(path / "model", params, config, tokenizer_files=tokenizer.files)
    io.save(path / "bare", params, config)
    pack_checkpoint(io.open_blocks(path / "model"), path / "model.packed")
    return path


def test_a_prompt_is_continued_and_the_numbers_are_written(folder, tmp_path):
    done = launch(
        "generate",
        f"--model={folder / 'model.packed'}",
        "--prompt=The quick",
        "--max_tokens=12",
        "--temperature=0.8",
        "--top_p=0.9",
        "--top_k=50",
        "--seed=3",
        f"--json={tmp_path / 'out.json'}",
    )
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "out.json").read_text())
    (completion,) = report["completions"]
    engine = Engine.load(folder / "model")
    options = {"max_tokens": 12, "temperature": 0.8, "top_p": 0.9, "top_k": 50}
    tokens = list(engine.stream("The quick", seed=3, **options))
    assert completion["ids"] == [token.id for token in tokens]
    assert completion["text"] == "".join(map(str, tokens))
    assert done.stdout == f"The quick{completion['text']}\n"
    assert f"written at {report['rates']['decode']:.1f}/s" in done.stderr
    assert report["rates"]["prompt_tokens"] == engine.rates.prompt_tokens


def test_the_prompts_of_a_file_are_worked_on_together(folder, tmp_path):
    prompts = ["The quick", "fox", "again and again and again"]
    (tmp_path / "prompts.txt").write_text("\n".join(prompts) + "\n\n")
    done = launch(
        "generate",
        f"--model={folder / 'model'}",
        f"--prompts={tmp_path / 'prompts.txt'}",
        "--batch_size=2",
        "--max_tokens=7",
        f"--json={tmp_path / 'out.json'}",
    )
    assert done.returncode == 0, done.stderr
    completions = json.loads((tmp_path / "out.json").read_text())["completions"]
    assert [completion["prompt"] for completion in completions] == prompts
    engine = Engine.load(folder / "model.packed")
    for completion in completions:
        alone = engine.stream(completion["prompt"], max_tokens=7)
        assert completion["text"] == "".join(map(str, alone))
        assert completion["prompt"] + completion["text"] in done.stdout


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--prompt=a", "--prompts=b"], "set one of --prompt and --prompts"),
        (["--prompts=gone.txt"], "--prompts=gone.txt cannot be read as text"),
        (["--prompt=a", "--model=bare"], "the model has no tokenizer; put one"),
        (["--prompt=" + "x " * 99], "more than the model's context of 64"),
    ],
)
def test_bad_input_is_one_sentence(arguments, sentence, folder):
    arguments = [a.replace("=bare", f"={folder / 'bare'}") for a in arguments]
    done = launch("generate", f"--model={folder / 'model.packed'}", *arguments)
    assert done.returncode == 2 and sentence in error_of(done)
    assert done.stdout == ""
