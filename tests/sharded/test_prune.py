"""A model loads, evaluates, prunes and saves on 8 virtual devices as on one."""

import pytest

from sparse_jax.prune import LINEARS
from tests.sharded.run import numbers_on_eight

MESHES = ("2x2x2", "1x8x1")


def prune_on_meshes(folder, linears, *solvers):
    """What the process with 8 devices prints."""
    return numbers_on_eight("prune_on_meshes.py", folder, linears, *solvers)


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    # Both layouts of a kernel on the mesh, in matrices of one shape.
    linears, solver = "layers/attention/(q|o)/kernel", "sparsegpt_refit:0.7"
    return prune_on_meshes(tmp_path_factory.mktemp("meshes"), linears, solver)


def check_pruned(runs):
    for name, run in runs.items():
        assert run["differing"] <= 5e-4 * run["bits"], name
        assert run["kept"], name
        assert abs(run["error_ratio"] - 1) < 1e-3, name


def test_masks_and_errors_are_those_of_one_device(found):
    check_pruned(found["pruned"])
    (run,) = found["pruned"].values()
    assert "'fsdp', 'tensor'" in run["spec"]


def test_rounding_is_that_of_one_device(found):
    run = found["rounded"]
    one, eight = run["loss"]
    assert eight == pytest.approx(one, rel=1e-5)
    ((grids, adapter, scales),) = run["kinds"]
    assert adapter == 4 * 7 and grids == scales > 0


@pytest.mark.parametrize("mesh", MESHES)
def test_files_are_the_same_bytes_from_any_mesh(found, mesh):
    moved = found["moved"][mesh]
    assert "masks.safetensors" in moved["files"] and moved["differing"] == []


@pytest.mark.parametrize("mesh", MESHES)
def test_a_loaded_model_is_cut_and_its_masks_with_it(found, mesh):
    assert found["moved"][mesh]["share"] == {"2x2x2": 1 / 4, "1x8x1": 1 / 8}[mesh]
    assert len({*found["moved"][mesh]["specs"]}) == 1


@pytest.mark.parametrize("mesh", MESHES)
def test_evaluation_and_counts_are_those_of_one_device(found, mesh):
    moved, one = found["moved"][mesh], found["one"]
    assert moved["loss"] == pytest.approx(one["loss"], rel=1e-6)
    assert moved["violations"] == one["violations"] == 0
    assert moved["sparsity"] == one["sparsity"]


@pytest.mark.slow
def test_every_solver_finds_the_masks_of_one_device(tmp_path):
    solvers = ["magnitude:0.5", "wanda:0.6", "sparsegpt:2:4", "wanda:2:4", "admm:0.6"]
    solvers += ["sparsegpt_refit:0.7", "sparsegpt:block:16x16"]
    check_pruned(prune_on_meshes(tmp_path, LINEARS, *solvers)["pruned"])
