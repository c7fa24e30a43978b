"""SIGTERM to one of two processes: both save at the same step, and go on from there."""

import signal

import pytest

from tests.launch.helpers import TINY
from tests.multihost import helpers
from tests.recipe.helpers import assert_same, write_corpus

pytestmark = pytest.mark.slow

LONGER = """
def get_config(whole=get_config):
    config = whole()
    config.train.update({"steps": 400, "checkpoint_every": 1000})
    for name in config.stages:
        config.stages[name].enabled = name == "dense"
    config.final = "dense"
    return config
"""


def test_all_stop_at_the_same_step_and_go_on(tmp_path):
    config = tmp_path / "tiny.py"
    config.write_text(TINY.format(corpus=str(write_corpus(tmp_path))) + LONGER)

    def command(workdir):
        flags = (f"--config={config}", f"--workdir={workdir}")
        return ("launch/train.py", *flags, "--distributed", "--config.mesh.data=2")

    whole, run = tmp_path / "whole", tmp_path / "run"
    done = helpers.run(tmp_path / "0", 2, *command(whole))
    assert [process.code for process in done] == [0, 0], done[0].err + done[1].err
    rows = run / "dense" / "metrics.jsonl"
    with helpers.started(tmp_path / "1", 2, *command(run)) as running:
        helpers.wait_until(
            lambda: rows.exists() and rows.read_text().count("\n") > 20, running
        )
        running[1].process.send_signal(signal.SIGTERM)
        ended = [process.finish() for process in running]
    assert [process.code for process in ended] == [75, 75], ended[0].err + ended[1].err
    lead, other = (process.err.splitlines()[-1] for process in ended)
    assert lead == other and lead.startswith("stopped: dense: saved after step ")
    (saved,) = (p.name for p in (run / "dense" / "checkpoints").iterdir())
    assert f"step {saved}," in lead and 20 < int(saved) < 400
    again = helpers.run(tmp_path / "2", 2, *command(run))
    assert [process.code for process in again] == [0, 0], again[0].err
    assert_same(run, whole)
