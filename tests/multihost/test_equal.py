"""Several processes train as one device does, and go on with what others have saved."""

import dataclasses
import shutil

import pytest

from benchmarks import mesh_equality
from sparse_jax.mesh import MeshConfig
from tests.sharded import models8

RELATIVE = 1e-5
SQUARE = {"fsdp": 2, "tensor": 2}
CUBE = {"data": 2, **SQUARE}


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """40 steps on one device, without a stop."""
    return mesh_equality.fit(MeshConfig(), tmp_path_factory.mktemp("one"), 40)


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """The folder and the result of 20 steps on two processes with 2 devices each."""
    folder = tmp_path_factory.mktemp("pair")
    job = {"mesh": SQUARE, "directory": str(folder / "run"), "steps": 20}
    return folder / "run", *mesh_equality.run([job], 2, 4, folder / "processes")


def test_two_processes_train_as_one_device(alone, pair):
    _, found = pair
    assert len(found["losses"]) == 20
    assert mesh_equality.difference(found["losses"], alone["losses"][:20]) < RELATIVE
    assert found["violations"] == 0


def test_one_device_goes_on_where_two_processes_stopped(alone, pair, tmp_path):
    run = shutil.copytree(pair[0], tmp_path / "run")
    shutil.rmtree(run / "checkpoints" / "20")
    found = mesh_equality.fit(MeshConfig(), run, 30)
    assert len(found["losses"]) == 30
    assert mesh_equality.difference(found["losses"], alone["losses"][:30]) < RELATIVE
    assert found["violations"] == 0


@pytest.mark.slow
def test_two_processes_then_one_then_four(alone, tmp_path):
    job = {"mesh": CUBE, "directory": str(tmp_path / "run"), "steps": 10}
    mesh_equality.run([job], 2, 8, tmp_path / "two")
    job |= {"mesh": {"fsdp": 8}, "steps": 20}
    mesh_equality.run([job], 1, 8, tmp_path / "one")
    job |= {"mesh": {"data": 2, "tensor": 4}, "steps": 40}
    (found,) = mesh_equality.run([job], 4, 8, tmp_path / "four")
    assert len(found["losses"]) == 40
    assert mesh_equality.difference(found["losses"], alone["losses"]) < RELATIVE
    assert found["violations"] == 0


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 4])
def test_every_mesh_of_8_devices(alone, tmp_path, processes):
    jobs = [
        {
            "mesh": dataclasses.asdict(mesh),
            "directory": str(tmp_path / str(number)),
            "steps": 20,
        }
        for number, mesh in enumerate(models8.meshes(8))
    ]
    for found in mesh_equality.run(jobs, processes, 8, tmp_path / "processes"):
        assert found["violations"] == 0
        losses = found["losses"]
        assert mesh_equality.difference(losses, alone["losses"][:20]) < RELATIVE
