"""Several real processes on this machine, which find each other as SLURM's do."""

import contextlib
import os
import pathlib
import random
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

ROOT = pathlib.Path(__file__).parents[2]
_FIRST_PORT = 2**16 - 2**12  # JAX takes the port from the number of SLURM's job


class Done(NamedTuple):
    """How a process ended."""

    code: int
    out: str
    err: str


class Running(NamedTuple):
    """A process and what it prints."""

    process: subprocess.Popen
    out: pathlib.Path
    err: pathlib.Path

    def finish(self, timeout: float = 900) -> Done:
        code = self.process.wait(timeout)
        return Done(code, self.out.read_text(), self.err.read_text())


def free_port() -> int:
    """A port that nobody listens on."""
    ports = list(range(_FIRST_PORT, 2**16))
    random.shuffle(ports)
    for port in ports:
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("", port))
            return port
    raise AssertionError("no port is free")


def environment(devices: int = 1, **extra: str) -> dict[str, str]:
    """Of a process with so many devices on the CPU."""
    xla = f"--xla_force_host_platform_device_count={devices}"
    paths = {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "XLA_FLAGS": xla}
    return {**os.environ, **paths, **extra}


def slurm(index: int, count: int, port: int) -> dict[str, str]:
    """The variables that SLURM gives to one of several processes on this machine."""
    return {
        "SLURM_JOB_ID": str(port - _FIRST_PORT),
        "SLURM_STEP_NODELIST": "localhost",
        "SLURM_NTASKS": str(count),
        "SLURM_PROCID": str(index),
        "SLURM_LOCALID": str(index),
    }


@contextlib.contextmanager
def started(
    folder: pathlib.Path, count: int, *command: object, devices: int = 1
) -> Iterator[list[Running]]:
    """Starts `count` processes of SLURM; those that are left at the end are killed.

    Args:
      folder: takes what they print.
      count: how many.
      *command: a Python file and its arguments; `{index}` becomes the process's number.
      devices: of each process.
    """
    folder.mkdir(parents=True, exist_ok=True)
    port, running = free_port(), []
    try:
        for index in range(count):
            out, err = (folder / f"{index}.{name}" for name in ("out", "err"))
            words = [str(word).replace("{index}", str(index)) for word in command]
            with out.open("w") as out_file, err.open("w") as err_file:
                process = subprocess.Popen(
                    [sys.executable, "-u", *words],
                    stdout=out_file,
                    stderr=err_file,
                    cwd=ROOT,
                    env=environment(devices, **slurm(index, count, port)),
                )
            running.append(Running(process, out, err))
        yield running
    finally:
        for process, *_ in running:
            process.kill()
            process.wait()


def wait_until(
    moment: Callable[[], bool], running: list[Running], limit: float = 900
) -> None:
    """Waits for something that running processes bring about."""
    until = time.monotonic() + limit
    while not moment():
        ended = [one for one in running if one.process.poll() is not None]
        assert not ended, ended[0].err.read_text()
        assert time.monotonic() < until, running[0].err.read_text()
        time.sleep(0.02)


def run(
    folder: pathlib.Path, count: int, *command: object, devices: int = 1
) -> list[Done]:
    """What became of `count` processes; see `started`."""
    with started(folder, count, *command, devices=devices) as running:
        return [process.finish() for process in running]
