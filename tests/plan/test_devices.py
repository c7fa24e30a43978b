"""The plan against programs compiled for 8 virtual devices, in one process."""

import json
import pathlib
import subprocess
import sys

import pytest

from sparse_jax.plan import compiled
from sparse_jax.types import InputError
from tests.multihost.helpers import environment

JOBS = ("tensor", "teacher", "adapters", "no remat")


@pytest.fixture(scope="module")
def found():
    done = subprocess.run(
        [sys.executable, str(pathlib.Path(__file__).with_name("on_eight.py"))],
        capture_output=True,
        text=True,
        env=environment(devices=8),
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_collectives_are_those_counted_by_hand(found):
    # [4, 16] float32 on a device are 256 bytes; rings of 4 and, for the sum, of 8.
    assert found["collectives"] == {
        "all-gather": [5, 5 * 1024, 5 * 1024 * 3 / 4],
        "reduce-scatter": [5, 5 * 1024, 5 * 1024 * 3 / 4],
        "all-reduce": [1, 256, 2 * 256 * 7 / 8],
        "all-to-all": [1, 256, 256 * 3 / 4],
        "collective-permute": [5, 5 * 256, 5 * 256],
        "loops": 0,
    }


def test_a_rematerialisation_is_seen_and_refused(found):
    # What XLA itself wrote, in a real compilation.
    with pytest.raises(InputError, match="1 times 'Involuntary full"):
        compiled.check_log(found["log"])


@pytest.mark.parametrize("name", JOBS)
def test_arguments_are_exact(found, name):
    actual, estimate = found[name]["arguments"]
    assert estimate == actual


@pytest.mark.parametrize("name", JOBS)
def test_temporaries_are_near_those_of_xla(found, name):
    actual, estimate = found[name]["temporaries"]
    assert 1 / 1.4 < estimate / actual < 1.4


@pytest.mark.parametrize("name", JOBS)
def test_sent_bytes_are_near_those_of_xla(found, name):
    actual, estimate = found[name]["sent"]
    assert 1 / 1.7 < estimate / actual < 1.7
