"""What one model-written program may use of the machine, and what became of it."""

import dataclasses
import math

from sparse_jax.types import InputError

MIB = 1 << 20


@dataclasses.dataclass(frozen=True, kw_only=True)
class Limits:
    """What one program may use; beyond any of it, it has failed.

    Attributes:
      seconds: wall-clock time, the interpreter's start included.
      cpu_seconds: CPU time over all threads. The verdict of a busy program depends on
        this, not on how loaded the machine is.
      memory_mib: address space in MiB, the interpreter's own 30 included.
      file_mib: size of the largest file it may write, in MiB.
      disk_mib: MiB that it may write in all, output and deleted files included.
      files: how many files its directory may hold.
      threads: how many threads may exist at once.
    """

    seconds: float = 15.0
    cpu_seconds: int = 5
    memory_mib: int = 1024
    file_mib: int = 16
    disk_mib: int = 64
    files: int = 64
    threads: int = 32

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if not (value > 0 and math.isfinite(value)):
                raise InputError(
                    f"limits.{field.name} must be positive and finite, found {value}"
                )
        if self.memory_mib < 128:
            raise InputError(
                f"limits.memory_mib is {self.memory_mib}, but Python itself needs "
                "about 100 with its libraries: give at least 128"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of one program.

    Attributes:
      passed: its last statement returned, and no test had failed.
      reason: "passed", or why not, in one line.
      seconds: wall-clock time, the start of its interpreter included.
    """

    passed: bool
    reason: str
    seconds: float
