"""Scripts that need 8 devices, each in a process of its own."""

import json
import pathlib
import subprocess
import sys

from tests.multihost.helpers import environment


def on_eight(script, *arguments):
    """What a script of this folder does on 8 virtual devices."""
    path = pathlib.Path(__file__).with_name(script)
    return subprocess.run(
        [sys.executable, str(path), *map(str, arguments)],
        capture_output=True,
        text=True,
        env=environment(devices=8),
    )


def numbers_on_eight(script, *arguments):
    """What it prints in its last line, where XLA had to copy nothing whole."""
    done = on_eight(script, *arguments)
    assert done.returncode == 0, done.stderr
    assert "rematerialization" not in done.stderr.lower(), done.stderr
    return json.loads(done.stdout.splitlines()[-1])
