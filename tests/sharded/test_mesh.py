"""Sharded training on 8 virtual devices equals training on one."""

import json

import numpy as np
import pytest

from tests.sharded.run import on_eight

SHARDED = ("all", "fsdp")


def fit_on_meshes(folder, *flags):
    """The output of a process with 8 devices."""
    return on_eight("fit_on_meshes.py", folder, *flags)


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """The one process that most tests here look at."""
    return fit_on_meshes(tmp_path_factory.mktemp("meshes"))


@pytest.fixture(scope="module")
def found(done):
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("name", [*SHARDED, "moved"])
def test_losses_are_those_of_one_device(found, name):
    assert len(found["one"]["losses"]) == 20
    np.testing.assert_allclose(
        found[name]["losses"], found["one"]["losses"], rtol=1e-5, atol=0
    )


@pytest.mark.parametrize("name", ["one", *SHARDED, "moved"])
def test_pruned_weights_stay_exactly_zero(found, name):
    assert found[name]["violations"] == 0
    assert found[name]["zeros"] == found["one"]["zeros"] > 0


@pytest.mark.parametrize("name", [*SHARDED, "moved"])
def test_masks_and_moments_lie_where_their_weight_does(found, name):
    for path, specs in found[name]["specs"].items():
        assert len({*specs}) == 1, (path, specs)


def test_weights_are_really_split(found):
    def share(name):
        return found[name]["shard"]["layers/mlp/up/kernel"]

    assert [share(n) for n in ("one", *SHARDED)] == [1, 1 / 4, 1 / 8]
    specs = found["all"]["specs"]
    assert specs["layers/mlp/up/kernel"][0].endswith("(None, 'fsdp', 'tensor')")
    assert specs["layers/mlp/down/kernel"][0].endswith("(None, 'tensor', 'fsdp')")


def test_no_weight_is_gathered_whole_by_accident(done):
    assert "rematerialization" not in done.stderr.lower()
    assert "error" not in done.stderr.lower()


def test_moving_masks_are_those_of_one_device(found):
    moving = found["moving"]
    assert len(moving["one"]) == 20
    np.testing.assert_allclose(moving["all"], moving["one"], rtol=1e-5, atol=0)
    assert moving["kept"] == moving["bits"] / 2
    assert moving["differ"] <= 0.0005 * moving["bits"]


@pytest.mark.slow
def test_every_mesh_of_8_devices(tmp_path):
    done = fit_on_meshes(tmp_path, "--every")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert len(found) == 11
    assert found["1x1x8"]["shard"]["layers/mlp/up/kernel"] == 1 / 8
    for mesh in found.values():
        np.testing.assert_allclose(mesh["losses"], found["one"]["losses"], rtol=1e-5)
        assert mesh["violations"] == 0
    assert "rematerialization" not in done.stderr.lower()
