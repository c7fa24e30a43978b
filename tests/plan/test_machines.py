"""Machines by name, and what is said of those that do not exist."""

import math

import pytest

from sparse_jax.plan import machines
from sparse_jax.types import InputError


@pytest.mark.parametrize(
    ("name", "devices"),
    [("v5e:16x16", 256), ("v6e:16x16", 256), ("v5p:8x8x8", 512), ("tpu7x:2x2x1", 8)],
)
def test_a_topology_has_its_devices(name, devices):
    assert machines.topology(name).devices == devices


@pytest.mark.parametrize("name", ["v5e:3x3", "v5e", "v9:2x2", "", "H100:8", "v5p:8x8"])
def test_an_unknown_topology_is_refused_with_the_list(name):
    with pytest.raises(InputError, match="does not exist") as error:
        machines.topology(name)
    listed = "16x16" if name.startswith("v5e") else "16x16x16"
    assert repr(name) in str(error.value) and listed in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["8xH99", "H100", "0xH100", "8xv5e", "8 x H100"])
def test_unknown_gpus_are_refused_with_the_list(name):
    with pytest.raises(InputError, match="H100, H200, B200"):
        machines.gpus(name)


def test_beyond_one_node_the_adapter_is_the_limit():
    assert machines.gpus("8xH100").link_rate == machines.CHIPS["H100"].link_rate
    assert machines.gpus("16xH100").link_rate == machines.CHIPS["H100"].node_rate


@pytest.mark.parametrize("name", machines.CHIPS)
def test_figures_are_plausible(name):
    chip = machines.CHIPS[name]
    assert chip.source.startswith("https://")
    # Between main memory and arithmetic: every chip since 2020 lies in this band.
    assert 100 < chip.flops / chip.memory_rate < 700
    assert chip.link_rate < chip.memory_rate
    assert all(math.prod(map(int, s.split("x"))) > 0 for s in chip.shapes)
