"""launch/prune.py and its config as a user runs them."""

import json

import jax
import pytest
from absl import flags
from ml_collections import config_flags

from configs import common
from configs import prune as prune_config
from sparse_jax import data, io, models, schema
from sparse_jax.models import LlamaConfig
from sparse_jax.recipe import PruneJob, run_prune
from sparse_jax.types import InputError
from tests.launch.helpers import CONFIGS, error_of, launch

TEXT = "The quick brown fox jumps over the lazy dog, again and again. " * 40
CONFIG = CONFIGS / "prune.py"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model of which 16 does not divide `down`, and a text."""
    path = tmp_path_factory.mktemp("prune")
    tokenizer = data.train_bpe([TEXT], vocab_size=280)
    config = LlamaConfig(
        vocab_size=280, d_model=32, d_ff=44, n_layers=1, n_heads=2, max_seq_len=32
    )
    params = jax.jit(models.init, static_argnums=1)(jax.random.key(0), config)
    io.save(path / "model", params, config, tokenizer_files=tokenizer.files)
    (path / "train.txt").write_text(TEXT)
    (path / "test.txt").write_text(TEXT[::-1])
    return path


def from_flags(*arguments):
    """The job that a command line describes."""
    values, argv = flags.FlagValues(), ["prune.py", *arguments]
    config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=argv)
    values(argv)
    return schema.build(PruneJob, values.config.to_dict())


def test_every_variant_names_its_solver():
    assert from_flags(f"--config={CONFIG}") == PruneJob()
    for solver in prune_config.SOLVERS:
        assert from_flags(f"--config={CONFIG}:{solver}") == PruneJob(solver=solver)
    job = PruneJob(evaluate=("a", "b"), sample_length=8)
    assert schema.build(PruneJob, common.to_config(job).to_dict()) == job
    with pytest.raises(InputError, match="no variant 'alps'; choose one of"):
        prune_config.get_config("alps")


def test_fields_that_are_none_or_tuples_are_set_by_flags():
    job = from_flags(
        f"--config={CONFIG}:wanda",
        "--config.sparsity=0.7",
        "--config.calibration=embedded:code",
        "--config.evaluate=data/test.txt",
        "--config.evaluate=embedded:prose",
        "--config.sample_length=64",
        "--config.evaluate_limit=1000",
        "--config.dtype=bfloat16",
        "--config.compute.dtype=float32",
    )
    assert job.calibration == "embedded:code"
    assert job.evaluate == ("data/test.txt", "embedded:prose")
    assert (job.solver, job.sparsity, job.sample_length) == ("wanda", 0.7, 64)
    assert (job.evaluate_limit, job.dtype) == (1000, "bfloat16")


def test_rules_from_the_command_line_where_16_does_not_divide(folder, tmp_path):
    common_flags = (f"--config={CONFIG}:magnitude", "--config.pattern=8:16")
    job = from_flags(*common_flags)
    with pytest.raises(
        InputError,
        match="layers/mlp/down/kernel: pattern 8:16 needs the input dimension to be a "
        "multiple of 16, found 44",
    ):
        run_prune(job, folder / "model", tmp_path / "out", quiet=True)
    job = from_flags(
        *common_flags,
        "--config.rules=(('layers/mlp/down/kernel', '2:4'), "
        "('layers/.*/kernel', 'pattern'), ('.*', 'dense'))",
    )
    report = run_prune(job, folder / "model", tmp_path / "out", quiet=True)
    patterns = {row["path"]: row["pattern"] for row in report["matrices"]}
    assert patterns.pop("layers/mlp/down/kernel") == "2:4"
    assert len(patterns) == 6 and set(patterns.values()) == {"8:16"}


def test_the_command_prints_and_writes_the_same_numbers(folder, tmp_path):
    done = launch(
        "prune",
        f"--model={folder / 'model'}",
        f"--out={tmp_path / 'out'}",
        f"--config={CONFIG}:wanda",
        "--config.sparsity=0.7",
        f"--config.calibration={folder / 'train.txt'}",
        f"--config.evaluate={folder / 'test.txt'}",
        "--config.samples=4",
        f"--json={tmp_path / 'out.json'}",
    )
    assert done.returncode == 0, done.stderr
    numbers = json.loads((tmp_path / "out.json").read_text())
    assert numbers == json.loads((tmp_path / "out/prune_report.json").read_text())
    assert numbers["settings"]["sparsity"] == 0.7
    markdown = (tmp_path / "out" / "prune_report.md").read_text()
    headline = markdown.splitlines()[2]
    assert headline in done.stdout
    assert f"report: {tmp_path / 'out' / 'prune_report.md'}" in done.stdout
    assert f"{numbers['evaluation'][0]['after']['loss']:.4f}" in done.stdout
    assert "block" not in done.stderr  # no bars where there is no terminal


def test_bad_input_is_one_sentence_and_exit_code_2(folder, tmp_path):
    done = launch(
        "prune",
        f"--model={folder / 'model'}",
        f"--out={folder}",
        f"--config={CONFIG}",
        f"--config.calibration={folder / 'train.txt'}",
    )
    assert done.returncode == 2
    assert error_of(done) == f"{folder}: is not empty; choose another place"
