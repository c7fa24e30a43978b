"""Two processes that find each other by SLURM's variables, and what they say."""

import json
import pathlib

import pytest

from tests.multihost import helpers

TALK = pathlib.Path(__file__).with_name("talk.py")


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What each of the two processes saw."""
    lead, other = helpers.run(tmp_path_factory.mktemp("talk"), 2, TALK, devices=2)
    assert (lead.code, other.code) == (0, 0), lead.err + other.err
    assert not other.out.strip().startswith("{")
    return json.loads(lead.out.splitlines()[-1])


def test_all_devices_are_one_machine(found):
    assert [seen["devices"] for seen in found] == [4, 4]


@pytest.mark.parametrize("process", [0, 1])
def test_values_reach_all(found, process):
    assert found[process]["lead"] == [0, None, 0.1]
    assert found[process]["gathered"] == [{"index": 0}, {"index": 1}]
    assert found[process]["fine"] == "fine"


def test_an_error_on_one_is_raised_on_all(found):
    refused = ["InputError", "no room on process 0"]
    assert [seen["input"] for seen in found] == [refused, refused]
    assert found[0]["bug"] == ["KeyError", "'no room on process 0'"]
    assert found[1]["bug"][0] == "RuntimeError"
    assert found[1]["bug"][1] == "process 0 stopped: 'no room on process 0'"
    refused = ["InputError", "no room on process 1"]
    assert [seen["one"] for seen in found] == [refused, refused]


@pytest.mark.parametrize("process", [0, 1])
def test_different_configs_are_named_by_field(found, process):
    assert found[process]["same"] is None
    kind, sentence = found[process]["other"]
    assert kind == "InputError"
    assert sentence.startswith(
        "config.train.steps is 5 on process 0 and 6 on process 1"
    )


@pytest.mark.parametrize("process", [0, 1])
def test_barriers_have_names(found, process):
    assert found[process]["barrier"] is None
    kind, sentence = found[process]["lost"]
    assert kind == "AssertionError" and "['at 0', 'at 1']" in sentence
