"""Launchers as a user runs them: another process, flags, an exit code, two streams."""

import os
import pathlib
import signal
import subprocess
import sys
import time

LAUNCH = pathlib.Path(__file__).parents[2] / "launch"
CONFIGS = pathlib.Path(__file__).parents[2] / "configs"

TINY = """
import pathlib
from configs import common
from tests.recipe import helpers

def get_config():
    return common.to_config(helpers.make_recipe(pathlib.Path({corpus!r})))
"""


def command(name, *arguments):
    return [sys.executable, str(LAUNCH / f"{name}.py"), *map(str, arguments)]


def environment(**extra):
    return os.environ | {"JAX_PLATFORMS": "cpu"} | extra


def compiled_once(folder):
    """Variables with which launchers of one test take each other's compiled programs.

    Not for two that run at the same time: JAX writes these files in place.
    """
    return {
        "JAX_COMPILATION_CACHE_DIR": str(folder),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }


LIMITED = """
import os, resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), resource.RLIM_INFINITY))
os.execv(sys.argv[2], sys.argv[2:])
"""


def launch(name, *arguments, file_limit=None, **variables):
    """Runs a launcher to its end; no file may grow beyond `file_limit` bytes."""
    limited = [sys.executable, "-c", LIMITED, str(file_limit)] if file_limit else []
    return subprocess.run(
        [*limited, *command(name, *arguments)],
        capture_output=True,
        text=True,
        env=environment(**variables),
    )


def error_of(done):
    """The one sentence of a launcher that refused its input."""
    assert done.returncode not in (0, None), done.stdout
    assert "Traceback" not in done.stderr + done.stdout, done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, done.stderr
    assert done.stderr.rstrip().endswith(lines[0]), done.stderr
    return lines[0].removeprefix("error: ")


def kill_when(moment, name, *arguments, after=0.0, limit=300, **variables):
    """Starts a launcher and kills it with -9 `after` seconds past a moment.

    Returns:
      Whether it was killed before it had ended by itself.
    """
    with subprocess.Popen(
        command(name, *arguments),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=environment(**variables),
    ) as process:
        until = time.monotonic() + limit
        while not moment() and process.poll() is None and time.monotonic() < until:
            time.sleep(0.005)
        time.sleep(after)
        process.send_signal(signal.SIGKILL)
        return process.wait() == -signal.SIGKILL
