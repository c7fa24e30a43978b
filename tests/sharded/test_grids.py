"""Training through grids, and of blocks, on 8 virtual devices is that of one."""

import pytest

from tests.sharded.run import numbers_on_eight


@pytest.fixture(scope="module")
def found():
    return numbers_on_eight("grids_on_meshes.py")


@pytest.mark.parametrize("train", ["all", "scales"])
def test_gradients_are_those_of_one_device(found, train):
    assert found[train]["difference"] < 1e-5


@pytest.mark.parametrize("train", ["all", "scales"])
def test_leaves_and_gradients_lie_as_the_rules_say(found, train):
    specs = found[train]["specs"]
    names = {path.rpartition("/")[2] for path in specs}
    kernels = {"kernel"} if train == "all" else set()
    assert names == kernels | {"quant_scale", "quant_zero"}
    assert all(len({*pair}) == 1 for pair in specs.values()), specs
    assert specs["layers/attention/q/quant_scale"][0].endswith("'fsdp', 'tensor')")


def test_a_trained_block_is_that_of_one_device(found):
    (before, after), eight = found["block"]["errors"]
    assert after < before
    assert eight == pytest.approx([before, after], rel=1e-5)
    one, other = found["block"]["norms"]
    assert other == pytest.approx(one, rel=1e-5)
