"""SquareHead with padding and prompts, and LoRA, on 8 virtual devices as on one."""

import pytest

from tests.sharded.run import numbers_on_eight

KINDS = ("whole", "lora")


@pytest.fixture(scope="module")
def found():
    return numbers_on_eight("finetune_on_meshes.py")


@pytest.mark.parametrize("kind", KINDS)
def test_every_number_of_every_step_is_that_of_one_device(found, kind):
    one, eight = (found[kind][name]["rows"] for name in ("one", "eight"))
    assert {"loss", "grad_norm", "cross_entropy", "features"} <= one[0].keys()
    for expected, row in zip(one, eight, strict=True):
        assert row == pytest.approx(expected, rel=1e-5, abs=1e-7)
    assert one[0]["features"] > 1e-2 and one[0]["loss"] != one[-1]["loss"]


@pytest.mark.parametrize("kind", KINDS)
def test_the_models_are_alike_and_their_zeros_stay(found, kind):
    one, eight = (found[kind][name] for name in ("one", "eight"))
    assert eight["sums"] == pytest.approx(one["sums"], rel=1e-5)
    assert one["violations"] == eight["violations"] == 0


def test_merged_kernels_lie_as_the_rules_say(found):
    assert found["lora"]["eight"]["specs"] == found["whole"]["eight"]["specs"]
