"""The system-call filter: an allow-list as a classic BPF program.

The kernel runs the program on every system call, over the record

    struct seccomp_data { int nr; u32 arch; u64 ip; u64 args[6]; }

with one 32-bit accumulator. The filter kills calls of another ABI (32-bit calls, x32),
allows what `syscalls.ALLOWED` lists, some of it only with the arguments in `CHECKED`,
and refuses the rest with EPERM: Python raises PermissionError, the program fails, and
nothing has happened. Only low words of arguments are compared: the kernel reads each
of those arguments as 32 bits.

Source: Linux `Documentation/userspace-api/seccomp_filter.rst`.
"""

import dataclasses
import errno

from sparse_jax.evaluate.sandbox.syscalls import ABSENT, ALLOWED, MACHINES

Instruction = tuple[int, int, int, int]
"""(code, jump if true, jump if false, constant), jumps relative to the next one."""

AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
X32_BIT = 0x40000000

LOAD, AND, EQUAL, AT_LEAST, RETURN = 0x20, 0x54, 0x15, 0x35, 0x06
NUMBER, ARCH, ARGUMENTS = 0, 4, 16

ALLOW, KILL, ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
REFUSE, UNKNOWN = ERRNO | errno.EPERM, ERRNO | errno.ENOSYS

OWN_PID = 0xFFFFFFFF
"""Stands for the program's own process id, which is known only once it runs."""

_CLONE_THREAD = 0x00010000
_CLONE_NAMESPACES = 0x7E020000
_O_ACCMODE, _O_TRUNC = 0o3, 0o1000


@dataclasses.dataclass(frozen=True, kw_only=True)
class Check:
    """A call is allowed if `argument & mask` is one of `values`.

    Attributes:
      argument: which of the call's arguments, from 0.
      values: what it may be.
      mask: the bits that count.
    """

    argument: int
    values: tuple[int, ...]
    mask: int = 0xFFFFFFFF


# Python's regular opens pass. O_TRUNC must come with write access: Landlock before
# ABI 3 does not see a truncation, but it does see what a file is opened for.
_OPEN_FLAGS = (0, 1, 2, _O_TRUNC | 1, _O_TRUNC | 2)

CHECKED: dict[str, Check] = {
    # Threads; never processes or namespaces.
    "clone": Check(
        argument=0, mask=_CLONE_THREAD | _CLONE_NAMESPACES, values=(_CLONE_THREAD,)
    ),
    "kill": Check(argument=0, values=(OWN_PID,)),
    "tgkill": Check(argument=0, values=(OWN_PID,)),
    "prlimit64": Check(argument=0, values=(0, OWN_PID)),
    # PR_SET_NAME, PR_GET_NAME, PR_SET_VMA: names of threads and of memory.
    "prctl": Check(argument=0, values=(15, 16, 0x53564D41)),
    # Duplicates, flags, POSIX locks, pipe size. F_SETOWN would send signals to others.
    "fcntl": Check(argument=1, values=(0, 1, 2, 3, 4, 5, 6, 7, 1030, 1032)),
    # TCGETS, TIOCGWINSZ, FIONREAD, FIONBIO, FIONCLEX, FIOCLEX.
    "ioctl": Check(argument=1, values=(0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)),
    "open": Check(argument=1, mask=_O_ACCMODE | _O_TRUNC, values=_OPEN_FLAGS),
    "openat": Check(argument=2, mask=_O_ACCMODE | _O_TRUNC, values=_OPEN_FLAGS),
}
"""Calls that are allowed with these arguments only."""


def _answer(number: int, action: int) -> list[Instruction]:
    return [(EQUAL, 0, 1, number), (RETURN, 0, 0, action)]


def _answer_checked(number: int, check: Check) -> list[Instruction]:
    body = [(LOAD, 0, 0, ARGUMENTS + 8 * check.argument), (AND, 0, 0, check.mask)]
    for value in check.values:
        body += [(EQUAL, 0, 1, value), (RETURN, 0, 0, ALLOW)]
    body.append((RETURN, 0, 0, REFUSE))
    # Another call jumps over the body, so the accumulator still holds its number.
    return [(EQUAL, 0, len(body), number), *body]


def assemble(machine: str) -> list[Instruction]:
    """The filter for a machine, with `OWN_PID` still to be replaced.

    Args:
      machine: "x86_64" or "aarch64".

    Returns:
      Instructions, at most 4096 (the kernel's bound).

    Example:
      >>> code = assemble("aarch64")
      >>> code[0] == (LOAD, 0, 0, ARCH) and code[-1] == (RETURN, 0, 0, REFUSE)
      True
    """
    column = MACHINES.index(machine)
    code = [
        (LOAD, 0, 0, ARCH),
        (EQUAL, 1, 0, AUDIT_ARCH[machine]),
        (RETURN, 0, 0, KILL),
        (LOAD, 0, 0, NUMBER),
    ]
    if machine == "x86_64":
        code += [(AT_LEAST, 0, 1, X32_BIT), (RETURN, 0, 0, KILL)]
    for name, numbers in ALLOWED.items():
        number = numbers[column]
        if number is None:
            continue
        if name in CHECKED:
            code += _answer_checked(number, CHECKED[name])
        else:
            code += _answer(number, ALLOW)
    for numbers in ABSENT.values():
        if (number := numbers[column]) is not None:
            code += _answer(number, UNKNOWN)
    return [*code, (RETURN, 0, 0, REFUSE)]
