"""When one process dies or refuses its input, the others stop with a sentence."""

import pathlib

import pytest

from tests.multihost import helpers

STOP = pathlib.Path(__file__).with_name("stop.py")
LIMIT = 60  # seconds; a hang would last for ever


def stopped(folder, *ways, kill=None):
    """How processes that work in these ways end, one of them by kill -9."""
    with helpers.started(folder, len(ways), STOP, *ways) as running:
        if kill is not None:
            helpers.wait_until(
                lambda: all("ready" in one.out.read_text() for one in running), running
            )
            running[kill].process.kill()
        return [one.finish(LIMIT) for one in running]


def sentence(done):
    """The last line, which explains why a process has stopped."""
    line = done.err.splitlines()[-1]
    assert line.startswith("error: "), done.err
    return line.removeprefix("error: ")


def test_a_dead_worker_stops_those_that_compute_wait_or_exchange(tmp_path):
    ways = ("computes", "waits", "collective", "computes")
    *left, dead = stopped(tmp_path, *ways, kill=3)
    assert dead.code == -9
    for process, done in enumerate(left):
        assert done.code == 76, done.err
        assert "Traceback" not in done.err
        assert "run the same command again" in sentence(done), process


def test_a_dead_lead_stops_the_others(tmp_path):
    dead, other = stopped(tmp_path, "computes", "computes", kill=0)
    assert dead.code == -9
    assert other.code == 76, other.err
    assert sentence(other).startswith("process 1 stops because another one has stopped")


def test_who_refuses_its_input_keeps_its_exit_code(tmp_path):
    other, wrong = stopped(tmp_path, "computes", "refuses")
    assert (other.code, wrong.code) == (76, 2)
    assert "error: no such file here" in wrong.err
    assert sentence(other).startswith("process 0 stops")


@pytest.mark.slow
def test_a_bug_shows_its_traceback_and_stops_the_others(tmp_path):
    broken, other = stopped(tmp_path, "breaks", "collective")
    assert (broken.code, other.code) == (1, 76)
    assert "KeyError: 'a bug'" in broken.err


def test_all_that_refuse_the_same_input_say_so(tmp_path):
    for done in stopped(tmp_path, "refuses", "refuses"):
        assert done.code == 2
        assert sentence(done) == "no such file here"
