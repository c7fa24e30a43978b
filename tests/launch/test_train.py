"""launch/train.py killed with -9 and started again ends with the same bits."""

import json
import random

import pytest

from sparse_jax import io
from tests.launch.helpers import CONFIGS, TINY, compiled_once, kill_when, launch
from tests.recipe.helpers import STAGES, assert_same, write_corpus


def has_lines(path, count):
    return lambda: path.exists() and len(path.read_text().splitlines()) >= count


def kill_then_finish(moments, workdir, *arguments, **variables):
    """One kill per moment, each in another kind of work, then a run to the end."""
    rng = random.Random(1)
    for moment in moments:
        assert kill_when(
            moment,
            "train",
            *arguments,
            f"--workdir={workdir}",
            after=rng.uniform(0, 0.05),
            **variables,
        )
        assert not (workdir / "report.json").exists()
    done = launch("train", *arguments, f"--workdir={workdir}", **variables)
    assert done.returncode == 0, done.stderr
    return done


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """The tests' tiny recipe as a config file."""
    folder = tmp_path_factory.mktemp("config")
    (folder / "tiny.py").write_text(TINY.format(corpus=str(write_corpus(folder))))
    return f"--config={folder / 'tiny.py'}"


def test_killed_and_started_again(config, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    variables = compiled_once(tmp_path / "compiled")
    done = launch("train", config, f"--workdir={whole}", **variables)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert [line.split(":")[0] for line in done.stderr.splitlines()] == [*STAGES]
    assert f"report: {whole / 'report.md'}" in done.stdout
    moments = (
        has_lines(killed / "dense" / "metrics.jsonl", 3),
        (killed / "one_shot_70" / "stage.json").exists,
    )
    done = kill_then_finish(moments, killed, config, **variables)
    # What was finished before the last kill is not done again.
    assert "trained_50" not in done.stderr
    assert_same(killed, whole)
    assert "70.0 %" in done.stdout
    assert io.resolve(killed).masks is not None


@pytest.mark.slow  # and every process compiles for itself
def test_the_smoke_recipe_killed_in_every_kind_of_work(tmp_path):
    config = f"--config={CONFIGS / 'sparse70.py'}:smoke"
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert launch("train", config, f"--workdir={whole}").returncode == 0
    moments = (
        has_lines(killed / "dense" / "metrics.jsonl", 1),
        (killed / "dense" / "checkpoints" / "20").exists,
        (killed / "one_shot_50" / "stage.json").exists,
        has_lines(killed / "trained_70" / "metrics.jsonl", 1),
        has_lines(killed / "one_shot" / "rows.jsonl", 3),
        (killed / "export" / "stage.json").exists,
    )
    kill_then_finish(moments, killed, config)
    assert_same(killed, whole)
    report = json.loads((killed / "report.json").read_text())
    assert report["models"][4]["sparsity_pruned"] == pytest.approx(0.7, abs=1e-3)
