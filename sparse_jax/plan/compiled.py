"""Compiles a step, or a kernel, for a TPU slice that is not there.

libtpu brings a client that only compiles; it needs no TPU.
"""

import contextlib
import dataclasses
import importlib.util
import os
import pathlib
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.experimental import topologies

from sparse_jax import mesh as mesh_lib
from sparse_jax.plan import hlo
from sparse_jax.plan.job import Job, lower
from sparse_jax.plan.machines import Machine
from sparse_jax.types import InputError

REMATERIALIZATION = "Involuntary full rematerialization"
"""What XLA writes to stderr where it copies a whole array to every device."""


_ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",  # there is no TPU whose other hosts it could ask for
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # nor one that another process could hold
    "TPU_STDERR_LOG_LEVEL": "1",  # warnings, which go to a file otherwise
}
"""Read by libtpu when it is loaded."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Compiled:
    """A step compiled for a machine.

    Attributes:
      text: the program, also of one that needs more memory than there is.
      arguments: bytes on one device; None when it needs more memory than there is.
      temporaries: bytes on one device.
      seconds: of compilation.
      cpu_seconds: of compilation, over all threads; other load does not change it.
    """

    text: str
    arguments: int | None
    temporaries: int
    seconds: float
    cpu_seconds: float

    @property
    def instructions(self) -> int:
        """How long the program is, loops and calls not repeated."""
        return sum(len(computation) for computation in hlo.parse(self.text)[0].values())


def available(machine: Machine) -> bool:
    """Whether programs for this machine can be compiled here."""
    return machine.chip.platform == "tpu" and (
        importlib.util.find_spec("libtpu") is not None
    )


def devices(machine: Machine) -> list[Any]:
    """The devices of a slice, known to the compiler alone."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    with captured_stderr():  # libtpu wonders where its hosts are
        found = topologies.get_topology_desc(
            platform="tpu", topology_name=machine.name
        ).devices
    if len(found) != machine.devices:
        raise AssertionError(f"{machine.name}: {len(found)} devices in libtpu")
    return list(found)


def compile_step(job: Job, machine: Machine) -> Compiled:
    """Compiles the training step as the training loop would.

    Raises:
      InputError: the mesh cannot be laid along the slice's links, or XLA would copy
        whole arrays to every device to change a sharding.
    """
    mesh = mesh_lib.make_mesh(job.mesh, job.needs, devices(machine))
    lowered = lower(job, mesh)
    with jax.set_mesh(mesh):
        started, cpu = time.monotonic(), time.process_time()
        with tempfile.TemporaryDirectory() as dump, captured_stderr() as log:
            # Written by libtpu itself: its programs may hold what JAX's own printer
            # does not know.
            options = {"xla_dump_to": dump, "xla_dump_hlo_as_text": True}
            try:
                memory = lowered.compile(compiler_options=options).memory_analysis()
                assert memory is not None  # of a backend that does not tell
                arguments = memory.argument_size_in_bytes
                temporaries = memory.temp_size_in_bytes
            except jax.errors.JaxRuntimeError as error:
                arguments, temporaries = None, _needed(error)
            seconds = time.monotonic() - started
            cpu_seconds = time.process_time() - cpu
            text = _program(pathlib.Path(dump))
    check_log(log())
    return Compiled(
        text=text,
        arguments=arguments,
        temporaries=temporaries,
        seconds=seconds,
        cpu_seconds=cpu_seconds,
    )


def _program(dump: pathlib.Path) -> str:
    """The compiled program; of one that did not fit, its last state."""
    for name in ("after_optimizations", "after_optimizations_before_buffer_assignment"):
        if found := sorted(dump.glob(f"*train_step*.{name}.txt")):
            return found[-1].read_text()
    raise AssertionError(f"XLA wrote no program, only {sorted(dump.iterdir())}")


def check_log(log: str) -> None:
    """Raises InputError when the compiler reported a rematerialisation."""
    found = [line for line in log.splitlines() if REMATERIALIZATION in line]
    if found:
        raise InputError(
            f"mesh: XLA reports {len(found)} times {REMATERIALIZATION!r}, a whole "
            "array copied to every device; use another mesh, and report this one: "
            f"{found[0].strip()[:500]}"
        )


def _needed(error: Exception) -> int:
    """Bytes of the temporaries of a program that does not fit; raises other errors."""
    match = re.search(r"HLO temporaries \(([\d.]+)([KMGT])\)", str(error))
    if match is None:
        raise error
    return int(float(match[1]) * 2 ** {"K": 10, "M": 20, "G": 30, "T": 40}[match[2]])


@contextlib.contextmanager
def captured_stderr() -> Iterator[Callable[[], str]]:
    """Collects what is written to file descriptor 2, also by C++.

    Yields:
      A function that gives it, to be called after the block. It is shown as well when
      the block raises.
    """
    sys.stderr.flush()
    kept, text = os.dup(2), ""
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), 2)
        try:
            yield lambda: text
        finally:
            sys.stderr.flush()
            os.dup2(kept, 2)
            os.close(kept)
            file.seek(0)
            text = file.read().decode(errors="replace")
            if sys.exc_info()[0] is not None:
                sys.stderr.write(text)


def compile_function(function: Callable, arguments: Any, device: Any) -> float:
    """Compiles a function of arrays for one device; returns the seconds it took."""
    sharding = jax.sharding.SingleDeviceSharding(device)
    shapes = jax.tree.map(
        lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=sharding), arguments
    )
    started = time.monotonic()
    with captured_stderr():
        jax.jit(function).lower(*shapes).compile()
    return time.monotonic() - started
