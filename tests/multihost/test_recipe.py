"""A whole recipe through the launcher on two processes, and on one."""

import json

import numpy as np
import pytest

from sparse_jax import io
from sparse_jax.tree import leaf_paths
from tests.launch.helpers import TINY, launch
from tests.multihost import helpers
from tests.recipe.helpers import MODELS, masks_of, write_corpus

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """The tests' tiny recipe as a config file."""
    folder = tmp_path_factory.mktemp("config")
    (folder / "tiny.py").write_text(TINY.format(corpus=str(write_corpus(folder))))
    return f"--config={folder / 'tiny.py'}"


@pytest.fixture(scope="module")
def alone(config, tmp_path_factory):
    """The recipe on one process and one device."""
    workdir = tmp_path_factory.mktemp("alone") / "run"
    done = launch("train", config, f"--workdir={workdir}")
    assert done.returncode == 0, done.stderr
    return workdir


def command(config, workdir, *more):
    flags = ("--distributed", "--peer_timeout=60", f"--workdir={workdir}")
    return ("launch/train.py", config, *flags, *more)


def files_of(workdir):
    """Every file of a run; what checkpoints and TensorBoard call theirs differs."""
    names = (p.relative_to(workdir) for p in workdir.rglob("*") if p.is_file())
    return sorted(
        str(name)
        for name in names
        if not {"checkpoints", "tensorboard"} & {*name.parts}
    )


def assert_alike(found, expected):
    """The same files, and the same models but for rounding."""
    assert files_of(found) == files_of(expected)
    for name in MODELS:
        left, right = (
            json.loads((run / name / "result.json").read_text())
            for run in (found, expected)
        )
        for key in ("tokens", "data", "kept", "sparsity_pruned"):
            assert left[key] == right[key], (name, key)
        for domain, numbers in right["domains"].items():
            loss = left["domains"][domain]["loss"]
            assert loss == pytest.approx(numbers["loss"], rel=1e-4), name
        other = masks_of(found / name) if "7" in name or "one" in name else {}
        for path, mask in other.items():
            differs = np.mean(np.asarray(mask) != masks_of(expected / name)[path])
            assert differs <= 5e-4, (name, path)
    weights = [leaf_paths(io.resolve(run).params) for run in (found, expected)]
    for path, leaf in weights[1].items():
        close = np.isclose(weights[0][path], leaf, rtol=1e-3, atol=1e-3)
        assert close.mean() > 0.998, path


def test_two_processes_end_with_the_same_files(config, alone, tmp_path):
    workdir = tmp_path / "run"
    lead, other = helpers.run(
        tmp_path / "printed",
        2,
        *command(config, workdir, "--config.mesh.data=2"),
    )
    assert (lead.code, other.code) == (0, 0), lead.err + other.err
    assert f"report: {workdir / 'report.md'}" in lead.out
    assert "report" not in other.out and not other.err.strip()
    assert_alike(workdir, alone)


def test_killed_on_two_processes_it_goes_on_with_one(config, alone, tmp_path):
    workdir = tmp_path / "run"
    rows = workdir / "trained_70" / "metrics.jsonl"
    arguments = command(config, workdir, "--config.mesh.fsdp=2")
    with helpers.started(tmp_path / "printed", 2, *arguments) as running:
        helpers.wait_until(lambda: rows.exists() and "\n" in rows.read_text(), running)
        running[1].process.kill()
        assert running[0].finish().code == 76
    done = launch("train", config, f"--workdir={workdir}")
    assert done.returncode == 0, done.stderr
    assert "trained_50" not in done.stderr  # finished by two
    assert_alike(workdir, alone)


def test_two_configs_are_refused(config, tmp_path):
    done = helpers.run(
        tmp_path / "printed",
        2,
        *command(config, tmp_path / "run", "--config.train.steps={index}7"),
    )
    for process in done:
        assert process.code == 2, process.err
        last = process.err.splitlines()[-1]
        assert last.startswith(
            "error: config.train.steps is 7 on process 0 and 17 on process 1"
        )
    assert not (tmp_path / "run").exists()


def test_a_mesh_without_devices_of_a_process_is_refused(config, tmp_path):
    arguments = command(config, tmp_path / "run")  # the default mesh, of one device
    for process in helpers.run(tmp_path / "printed", 2, *arguments):
        assert process.code == 2, process.err
        last = process.err.splitlines()[-1]
        assert last.startswith("error: stages.dense: mesh: ") and "found 2" in last


TAUGHT = """
import dataclasses, pathlib
from configs import common
from sparse_jax.recipe import Pretrain
from sparse_jax.train import DistillConfig
from tests.recipe import helpers

def get_config():
    recipe = helpers.make_recipe(pathlib.Path({corpus!r}))
    distill = DistillConfig(feature_weight=1.0)
    stages = {{
        "dense": recipe.stages["dense"],
        "taught": Pretrain(parent="dense", steps=3, teacher="dense", distill=distill),
    }}
    options = {{"stages": stages, "order": tuple(stages), "final": "taught"}}
    return common.to_config(dataclasses.replace(recipe, **options))
"""


def test_a_teacher_is_known_to_all_processes(tmp_path):
    path = tmp_path / "taught.py"
    path.write_text(TAUGHT.format(corpus=str(write_corpus(tmp_path))))
    work = {}
    for name, count in (("alone", 1), ("both", 2)):
        work[name] = tmp_path / name
        ended = helpers.run(
            tmp_path / f"{name}_printed",
            count,
            *command(f"--config={path}", work[name], f"--config.mesh.data={count}"),
        )
        assert {process.code for process in ended} == {0}, ended[0].err
    losses = [
        json.loads((run / "taught" / "result.json").read_text())["domains"]
        for run in work.values()
    ]
    for domain, numbers in losses[0].items():
        assert losses[1][domain]["loss"] == pytest.approx(numbers["loss"], rel=1e-5)
