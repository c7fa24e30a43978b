"""What a program is locked in by: the layers, and which of them this machine lacks."""

import dataclasses
import os
import platform
import pwd
import random
import resource
import sys
from typing import Any

from sparse_jax.evaluate.sandbox import landlock, seccomp, syscalls
from sparse_jax.evaluate.sandbox.limits import MIB, Limits

LAYERS = ("resource limits", "no_new_privs", "Landlock", "user", "seccomp")
"""Names of what `child.py` puts up, in its order."""

USERS = range(60578, 61184)
"""User ids that neither Debian nor systemd gives to anybody."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Policy:
    """Everything that is the same for all programs of one call.

    Attributes:
      limits: what a program may use.
      layers: names of the layers to put up; one that fails stops the program.
      job: what `child.py` needs for them.
    """

    limits: Limits
    layers: tuple[str, ...]
    job: dict[str, Any]


def known_missing() -> dict[str, str]:
    """Layers that cannot work here, found without trying them: name to reason."""
    missing = {}
    machine = platform.machine()
    if machine not in syscalls.MACHINES or sys.maxsize < 1 << 32:
        missing["seccomp"] = f"no table of system calls for a {machine} process"
    try:
        landlock.version()
    except OSError as error:
        missing["Landlock"] = f"the kernel answers: {error.strerror}"
    return missing


def make(limits: Limits, *, without: frozenset[str] = frozenset()) -> Policy:
    """The policy of this machine.

    Args:
      limits: what a program may use.
      without: layers to leave out.

    Returns:
      A policy with every other layer.
    """
    layers = tuple(name for name in LAYERS if name not in without)
    job: dict[str, Any] = {"layers": layers, "limits": _resource_limits(limits)}
    if "Landlock" in layers:
        rules = landlock.ruleset(landlock.version())
        job |= {"handled": rules.handled, "rules": rules.rules}
    if "seccomp" in layers:
        job["filter"] = tuple(
            (
                code,
                yes,
                no,
                None if k == seccomp.OWN_PID and code == seccomp.EQUAL else k,
            )
            for code, yes, no, k in seccomp.assemble(platform.machine())
        )
    return Policy(limits=limits, layers=layers, job=job)


def users(count: int) -> list[int | None]:
    """A user id for each of `count` programs at a time.

    Root's programs run as users that nothing belongs to, each with its own count of
    threads, chosen at random so that another evaluation rarely shares it. Others' run
    as who started them (None).
    """
    if os.geteuid() != 0:
        return [None] * count
    given = {entry.pw_uid for entry in pwd.getpwall()}
    free = [user for user in USERS if user not in given]
    return list(random.SystemRandom().sample(free, count))


def _resource_limits(limits: Limits) -> tuple[tuple[int, int, int], ...]:
    """(resource, soft limit, hard limit)."""
    amounts = {
        # No core dump; 0 would still start a dump handler where there is one (core(5)).
        resource.RLIMIT_CORE: 1,
        resource.RLIMIT_AS: limits.memory_mib * MIB,
        resource.RLIMIT_STACK: 8 * MIB,
        resource.RLIMIT_FSIZE: limits.file_mib * MIB,
        resource.RLIMIT_NOFILE: 64,
        resource.RLIMIT_MEMLOCK: 0,
        resource.RLIMIT_NPROC: limits.threads + _tasks_of_user(),
    }
    # SIGXCPU tells a verdict; who catches it is killed a second later.
    cpu = (resource.RLIMIT_CPU, limits.cpu_seconds, limits.cpu_seconds + 1)
    return (cpu, *((which, amount, amount) for which, amount in amounts.items()))


def _tasks_of_user() -> int:
    """Threads that this user runs already, since RLIMIT_NPROC counts them together."""
    user = os.geteuid()
    if user == 0:
        return 0
    tasks = 0
    for name in os.listdir("/proc"):
        try:
            if name.isdigit() and os.stat(f"/proc/{name}").st_uid == user:
                tasks += len(os.listdir(f"/proc/{name}/task"))
        except OSError:
            continue  # It has ended.
    return tasks
