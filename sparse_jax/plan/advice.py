"""What to change in a job: other settings, tried by estimate."""

import dataclasses
from collections.abc import Iterator
from typing import Literal

from sparse_jax.mesh import MeshConfig
from sparse_jax.plan import flops, memory
from sparse_jax.plan.job import Job
from sparse_jax.plan.machines import Machine
from sparse_jax.plan.roofline import (
    estimated_collectives,
    estimated_traffic,
    roofline,
)
from sparse_jax.types import InputError

Remat = Literal["none", "dots", "block"]
"""As `Compute.remat`."""

_REMATS: tuple[Remat, ...] = ("dots", "block")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Option:
    """A changed job, by estimate.

    Attributes:
      change: flags that make it.
      memory: bytes of a device.
      seconds: of a step at best.
      fits: whether the memory is there.
    """

    change: str
    memory: int
    seconds: float
    fits: bool


def options(job: Job, machine: Machine, *, scale: float = 1.0) -> list[Option]:
    """Other settings of a job, those that fit first, the fastest first.

    Args:
      job: the present one, which is left out.
      machine: where it runs.
      scale: what XLA needs for temporaries over what the estimate says, at present.
    """
    found = []
    for change, other in _variants(job):
        try:
            other.check(machine.devices)
        except InputError:
            continue
        estimate = memory.estimate(other, machine.chip.granule)
        total = int(estimate.arguments + scale * estimate.temporaries)
        times = roofline(
            machine,
            executed=flops.executed(other),
            moved=estimated_traffic(other),
            sent=sum(c.sent for c in estimated_collectives(other)),
        )
        found.append(
            Option(
                change=change,
                memory=total,
                seconds=times.best,
                fits=total <= machine.chip.memory,
            )
        )
    # Rounded: a thousandth of a second decides nothing, but memory may.
    return sorted(found, key=lambda o: (not o.fits, round(o.seconds, 2), o.memory))


def _variants(job: Job) -> Iterator[tuple[str, Job]]:
    """One or two settings changed; a mesh of another size may not fit."""
    shards = job.mesh.data * job.mesh.fsdp
    for micro in (1, 2, 4, 8, 16):
        accumulate = job.batch_size // (micro * shards)
        if accumulate and accumulate * micro * shards == job.batch_size:
            for remat in _REMATS:
                yield from _variant(job, job.mesh, accumulate, remat)
    for tensor in (2, 4, 8):
        if job.mesh.fsdp % tensor == 0:
            mesh = dataclasses.replace(
                job.mesh,
                fsdp=job.mesh.fsdp // tensor,
                tensor=job.mesh.tensor * tensor,
            )
            for accumulate in {job.accumulate, max(1, job.accumulate // tensor)}:
                yield from _variant(job, mesh, accumulate, "block")
    if job.optimizer.moment_dtype != "bfloat16":
        optimizer = dataclasses.replace(job.optimizer, moment_dtype="bfloat16")
        flag = "--config.train.optimizer.moment_dtype=bfloat16"
        yield flag, dataclasses.replace(job, optimizer=optimizer)


def _variant(
    job: Job, mesh: MeshConfig, accumulate: int, remat: Remat
) -> Iterator[tuple[str, Job]]:
    compute = dataclasses.replace(job.compute, remat=remat)
    other = dataclasses.replace(job, mesh=mesh, accumulate=accumulate, compute=compute)
    if other == job:
        return
    flags = []
    for axis in ("data", "fsdp", "tensor"):
        if getattr(mesh, axis) != getattr(job.mesh, axis):
            flags.append(f"--config.mesh.{axis}={getattr(mesh, axis)}")
    if accumulate != job.accumulate:
        flags.append(f"--config.train.accumulate={accumulate}")
    if remat != job.compute.remat:
        flags.append(f"--config.compute.remat={remat}")
    yield " ".join(flags), other
