"""Start one program in its sandbox, watch it, and leave nothing of it behind."""

import contextlib
import marshal
import os
import pathlib
import secrets
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from typing import Any

from sparse_jax.evaluate.sandbox.limits import MIB, Limits, Outcome
from sparse_jax.evaluate.sandbox.policy import LAYERS, Policy
from sparse_jax.types import InputError

CHILD = pathlib.Path(__file__).with_name("child.py")

# Nothing of ours is inherited; what is set makes verdicts repeatable (the order of
# sets) and threads cheap in address space (glibc reserves 64 MiB for each by default).
_ENVIRONMENT = {
    "LC_ALL": "C.UTF-8",
    "MALLOC_ARENA_MAX": "1",
    "PYTHONHASHSEED": "0",
    "TMPDIR": ".",
}
_REPORT_BYTES = 4096
_LOOK_EVERY_S = 0.05


def run(program: str, policy: Policy, *, user: int | None) -> Outcome:
    """Run one program in a new process that is gone, with its files, on return.

    Args:
      program: Python source that raises where a test fails.
      policy: what to lock it in by.
      user: the user id to run as; None stays.

    Returns:
      Its outcome.

    Raises:
      InputError: a layer could not be put up; the program has not run.
    """
    began = time.monotonic()
    token = secrets.token_hex(16).encode()
    report, killed, status = _run(program, policy, user, token)
    setup, _, verdict = report.partition(b"\n")
    if setup != b"ready":
        why = _one_line(setup) or killed or f"exit status {status}"
        raise InputError(f"a program was not run, as its sandbox failed: {why}")
    passed = verdict == token and killed is None
    reason = "passed" if passed else killed or _reason(verdict, status, policy.limits)
    return Outcome(passed=passed, reason=reason, seconds=time.monotonic() - began)


def missing(policy: Policy, *, user: int | None) -> dict[str, str]:
    """Try the layers of a policy on an empty program: name to reason of what failed."""
    report, killed, status = _run("", policy, user, b"token")
    setup, _, _ = report.partition(b"\n")
    if setup == b"ready":
        return {}
    if not setup.startswith(b"layer "):
        why = killed or f"exit status {status}"
        raise InputError(
            f"the sandbox's process failed before its first layer ({why}): check that "
            f"{sys.executable!r} has ctypes and runs with no environment variables "
            "(LD_LIBRARY_PATH, too, is not passed on)"
        )
    entries = _one_line(setup.removeprefix(b"layer ")).split(";")
    return dict(entry.split(": ", 1) for entry in entries)


def _run(
    program: str, policy: Policy, user: int | None, token: bytes
) -> tuple[bytes, str | None, int | None]:
    """What the process reported, why it was killed, or else its exit status."""
    directory = tempfile.mkdtemp(prefix="sparse_jax_")
    reading, writing = os.pipe()
    job = policy.job | {"program": program, "token": token, "user": user}
    job |= {"channel": writing, "parent": os.getpid()}
    try:
        try:
            process = _start(job, directory)
        finally:
            os.close(writing)
        try:
            report, killed = _watch(process.pid, reading, directory, policy.limits)
        finally:
            status = _end(process)
    finally:
        os.close(reading)
        # Without a layer a program may have damaged, or be filling, its directory.
        shutil.rmtree(directory, ignore_errors=policy.layers != LAYERS)
    return report, killed, status


def _start(job: dict[str, Any], directory: str) -> subprocess.Popen[bytes]:
    if job["user"] is not None:
        os.chown(directory, job["user"], job["user"])
    # -I would also ignore PYTHONHASHSEED; with no environment -P and -s are the rest.
    command = [sys.executable, "-P", "-s", "-S", "-B", os.fspath(CHILD)]
    # Marshalled because the child then imports nothing to read it: 7 ms a program.
    with tempfile.TemporaryFile() as file:
        file.write(marshal.dumps(job))
        file.seek(0)
        return subprocess.Popen(
            command,
            stdin=file,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd=directory,
            env=_ENVIRONMENT,
            pass_fds=(job["channel"],),
            start_new_session=True,
        )


def _watch(
    pid: int, channel: int, directory: str, limits: Limits
) -> tuple[bytes, str | None]:
    """Read the report until its end, or until the program is to be killed, and why."""
    deadline = time.monotonic() + limits.seconds
    poller = select.poll()
    poller.register(channel, select.POLLIN)
    report = b""
    while (left := deadline - time.monotonic()) > 0:
        if poller.poll(1000 * min(left, _LOOK_EVERY_S)):
            chunk = os.read(channel, _REPORT_BYTES)
            if not chunk:
                return report, None
            report += chunk
            if len(report) > _REPORT_BYTES:
                return report, "killed: it wrote into the report"
        elif excess := _excess(pid, directory, limits):
            return report, f"killed: {excess}"
    return report, f"killed: over {limits.seconds:g} s"


def _excess(pid: int, directory: str, limits: Limits) -> str | None:
    """What a program has too much of on disk, in words, if anything."""
    size, count = 0, 0
    with os.scandir(directory) as entries:
        for entry in entries:
            count += 1
            if count > limits.files:
                return f"over {limits.files} files"
            # One that went meanwhile holds nothing; the others count all the same.
            with contextlib.suppress(FileNotFoundError):
                size += entry.stat(follow_symlinks=False).st_blocks * 512
    if size > limits.disk_mib * MIB:
        return f"over {limits.disk_mib} MiB on disk"
    if _written(pid) > limits.disk_mib * MIB:
        return f"over {limits.disk_mib} MiB written"
    return None


def _written(pid: int) -> int:
    """Bytes that a process has written so far: deleted files and output, too.

    A deleted file takes disk for as long as it is open or mapped, out of sight.
    """
    try:
        fields = pathlib.Path(f"/proc/{pid}/io").read_text(encoding="ascii").split()
    except OSError:
        return 0  # It has just ended, or this kernel does not count.
    counts = dict(zip(fields[::2], map(int, fields[1::2]), strict=True))
    return max(counts["wchar:"], counts["write_bytes:"])


def _end(process: subprocess.Popen[bytes]) -> int | None:
    """Kill what is left of the process and of its group.

    Returns:
      Its exit status, None if it had not ended by itself.
    """
    # The report ends when the process does, save if it was closed early or is to be
    # killed. Until it is waited for, its number cannot become another process's.
    how = os.WEXITED | os.WNOWAIT | os.WNOHANG
    patience = time.monotonic() + 0.1
    while (ended := os.waitid(os.P_PID, process.pid, how)) is None:
        if time.monotonic() > patience:
            break
        time.sleep(0.001)
    os.killpg(process.pid, signal.SIGKILL)
    status = process.wait()
    return None if ended is None else status


def _reason(verdict: bytes, status: int | None, limits: Limits) -> str:
    if verdict.startswith(b"failed "):
        return _one_line(verdict.removeprefix(b"failed "))
    if verdict:
        return "it wrote into the report"
    if status is None:
        return "killed: it closed its report"
    if status >= 0:
        return f"exit status {status} before the tests ended"
    if -status == signal.SIGXCPU:
        return f"killed: over {limits.cpu_seconds} s of CPU time"
    if -status == signal.SIGKILL:
        return f"killed: over {limits.cpu_seconds} s of CPU time, or out of memory"
    return f"crashed: {signal.Signals(-status).name}"


def _one_line(text: bytes) -> str:
    return " ".join(text.decode(errors="replace").split())
