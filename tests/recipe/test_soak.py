"""The soak script itself, for a few kills: it ends bit-equal, and can be resumed."""

import json
import pathlib
import subprocess
import sys

import pytest

SOAK = pathlib.Path(__file__).parents[2] / "benchmarks" / "soak.py"


def soak(workdir, kills):
    return subprocess.run(
        [
            sys.executable,
            str(SOAK),
            f"--kills={kills}",
            "--processes=1",
            f"--workdir={workdir / 'soak'}",
            f"--json={workdir / 'soak.json'}",
        ],
        capture_output=True,
        text=True,
    )


@pytest.mark.slow
def test_kills_leave_no_trace(tmp_path):
    for kills in (1, 2):  # the second goes on after the first
        done = soak(tmp_path, kills)
        assert done.returncode == 0, done.stdout + done.stderr
        (record,) = json.loads((tmp_path / "soak.json").read_text())
        assert len(record["kills"]) == kills
        assert record["equal"] >= 1
    assert "whole" in {p.name for p in (tmp_path / "soak" / "1").iterdir()}
