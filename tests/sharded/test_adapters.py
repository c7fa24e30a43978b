"""Low-rank factors and learned scales on 8 virtual devices are those of one."""

import pytest

from tests.sharded.run import numbers_on_eight

KINDS = ("indicator", "stored")


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    return numbers_on_eight("adapters_on_meshes.py", tmp_path_factory.mktemp("meshes"))


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_those_of_one_device(found, kind):
    assert found[kind]["difference"] < 1e-5


@pytest.mark.parametrize("kind", KINDS)
def test_leaves_and_gradients_lie_as_the_rules_say(found, kind):
    specs = found[kind]["specs"]
    assert all(len({*pair}) == 1 for pair in specs.values()), specs
    q, o = "layers/attention/q", "layers/attention/o"
    assert specs[f"{q}/slorb_s"] == specs[f"{q}/kernel"]
    assert specs[f"{o}/slorb_s"] == specs[f"{o}/kernel"]
    assert specs[f"{q}/scale"][0].endswith("(None, None, 'tensor')")
    assert (f"{q}/slorb_x" in specs) == (kind == "stored")


@pytest.mark.parametrize("kind", KINDS)
def test_files_and_merged_weights_are_those_of_one_device(found, kind):
    assert "adapter.safetensors" in found[kind]["files"]
    assert found[kind]["differing"] == []
    assert found[kind]["merged"] < 1e-6 and found[kind]["share"] == 1 / 8
