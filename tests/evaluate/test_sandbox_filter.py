"""The system-call filter and Landlock's rules as data, on every machine's table."""

import errno
import functools
import sys

import pytest

from sparse_jax.evaluate.sandbox import child, landlock, policy, seccomp, syscalls
from sparse_jax.evaluate.sandbox.limits import Limits
from sparse_jax.types import InputError

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Linux's filters")

PID = 4321
KILLED, REFUSED, UNKNOWN, ALLOWED = (
    seccomp.KILL,
    seccomp.ERRNO | errno.EPERM,
    seccomp.ERRNO | errno.ENOSYS,
    seccomp.ALLOW,
)
MACHINES = pytest.mark.parametrize("machine", syscalls.MACHINES)


assemble = functools.cache(seccomp.assemble)


def decide(machine, number, *arguments, arch=None):
    """What the kernel would do: an interpreter of the five instructions in use."""
    words = {0: number, 4: seccomp.AUDIT_ARCH[machine] if arch is None else arch}
    for i, value in enumerate(arguments):
        words[16 + 8 * i] = value & 0xFFFFFFFF
        words[20 + 8 * i] = value >> 32 & 0xFFFFFFFF
    code, at, held = assemble(machine), 0, None
    while True:
        operation, yes, no, constant = code[at]
        if constant == seccomp.OWN_PID and operation == seccomp.EQUAL:
            constant = PID
        at += 1
        if operation == seccomp.LOAD:
            held = words.get(constant, 0)
        elif operation == seccomp.AND:
            held &= constant
        elif operation == seccomp.EQUAL:
            at += yes if held == constant else no
        elif operation == seccomp.AT_LEAST:
            at += yes if held >= constant else no
        else:
            assert operation == seccomp.RETURN
            return constant


def number(machine, name):
    table = syscalls.ALLOWED | syscalls.ABSENT
    return table[name][syscalls.MACHINES.index(machine)]


@MACHINES
def test_exactly_the_listed_calls_are_allowed(machine):
    column = syscalls.MACHINES.index(machine)
    plain = {
        numbers[column]
        for name, numbers in syscalls.ALLOWED.items()
        if name not in seccomp.CHECKED
    }
    absent = {numbers[column] for numbers in syscalls.ABSENT.values()}
    checked = {syscalls.ALLOWED[name][column] for name in seccomp.CHECKED}
    for call in range(700):
        got = decide(machine, call)
        if call in checked:
            continue
        want = ALLOWED if call in plain else UNKNOWN if call in absent else REFUSED
        assert got == want, call


@MACHINES
def test_the_tables_hold_no_number_twice(machine):
    column = syscalls.MACHINES.index(machine)
    assert not syscalls.ALLOWED.keys() & syscalls.ABSENT.keys()
    numbers = [
        n[column] for n in (*syscalls.ALLOWED.values(), *syscalls.ABSENT.values())
    ]
    given = [n for n in numbers if n is not None]
    assert len(given) == len(set(given))
    assert len(seccomp.assemble(machine)) <= 4096


@MACHINES
def test_other_abis_are_killed(machine):
    other = next(m for m in syscalls.MACHINES if m != machine)
    for arch in (seccomp.AUDIT_ARCH[other], 0x40000003, 0x40000028, 0):
        assert decide(machine, number(machine, "read"), arch=arch) == KILLED
    x32 = decide(machine, 0x40000000 | number(machine, "read"))
    assert x32 == (KILLED if machine == "x86_64" else REFUSED)


THREAD = 0x3D0F00
ARGUMENTS = [
    ("clone", (THREAD,), True),
    ("clone", (0,), False),
    ("clone", (17,), False),
    ("clone", (0x4111,), False),  # vfork by another name
    ("clone", (THREAD | 0x10000000,), False),  # a user namespace
    ("clone", (THREAD | 0x40000000,), False),
    ("kill", (PID, 9), True),
    ("kill", (PID + 1, 0), False),
    ("kill", (0, 9), False),
    ("kill", (-1, 9), False),
    ("kill", (-PID, 9), False),
    ("kill", (PID | 1 << 32, 9), True),  # the kernel reads 32 bits as well
    ("tgkill", (PID, PID + 3, 9), True),
    ("tgkill", (1, 1, 9), False),
    ("prlimit64", (0, 7), True),
    ("prlimit64", (1, 7), False),
    ("prctl", (15,), True),
    ("prctl", (1,), False),  # PR_SET_PDEATHSIG
    ("prctl", (4,), False),  # PR_SET_DUMPABLE
    ("fcntl", (3, 3), True),
    ("fcntl", (3, 8), False),  # F_SETOWN
    ("fcntl", (3, 10), False),  # F_SETSIG
    ("fcntl", (3, 15), False),  # F_SETOWN_EX
    ("fcntl", (3, 1031), False),  # F_SETPIPE_SZ
    ("ioctl", (0, 0x5401), True),
    ("ioctl", (0, 0x5412), False),  # TIOCSTI types for the user
    ("ioctl", (0, 0x8901), False),  # FIOSETOWN
    ("openat", (-100, 0, 0), True),
    ("openat", (-100, 0, 0o1101), True),  # create, truncate, write
    ("openat", (-100, 0, 0o1000), False),  # truncate, read
    ("openat", (-100, 0, 0o1003), False),
    ("openat", (-100, 0, 3), False),
]


@MACHINES
@pytest.mark.parametrize(("name", "arguments", "right"), ARGUMENTS)
def test_arguments(machine, name, arguments, right):
    got = decide(machine, number(machine, name), *arguments)
    assert got == (ALLOWED if right else REFUSED)


def test_open_without_a_folder_is_checked_like_openat():
    call = number("x86_64", "open")
    assert decide("x86_64", call, 0, 0o1101) == ALLOWED
    assert decide("x86_64", call, 0, 0o1000) == REFUSED


def test_landlock_by_version():
    # Bits of linux/landlock.h: 13 rights at first, then refer, truncate, ioctl.
    words = [landlock.ruleset(abi).handled for abi in range(1, 9)]
    files = [0x1FFF, 0x3FFF, 0x7FFF, 0x7FFF, 0xFFFF, 0xFFFF, 0xFFFF, 0xFFFF]
    assert [w[0] for w in words] == files
    assert [len(w) for w in words] == [1, 1, 1, 2, 2, 3, 3, 3]
    assert words[7][1:] == (3, 3)


def test_landlock_lets_write_in_one_place_only():
    writing = landlock.WRITE_FILE | landlock.MAKE_REG | landlock.REMOVE_FILE
    rules = landlock.ruleset(7).rules
    assert [p for p, rights in rules if rights & writing] == ["", "/dev/null"]
    assert not any(p in ("/", "/root", "/home", "/tmp", "/etc") for p, _ in rules)
    for abi in range(1, 9):
        made = landlock.ruleset(abi)
        assert all(rights & ~made.handled[0] == 0 for _, rights in made.rules)


def test_the_child_puts_up_the_layers_that_the_policy_names():
    assert tuple(child.LAYERS) == policy.LAYERS
    assert child.CREATE_RULESET == landlock.CREATE_RULESET


def test_root_never_shares_a_user(monkeypatch):
    monkeypatch.setattr(policy.os, "geteuid", lambda: 0)
    chosen = policy.users(8)
    assert len(set(chosen)) == 8 and set(chosen) <= set(policy.USERS)
    monkeypatch.setattr(policy.os, "geteuid", lambda: 1000)
    assert policy.users(3) == [None] * 3


def test_threads_of_the_same_user_are_not_held_against_a_program(monkeypatch):
    # RLIMIT_NPROC counts all that a user runs, and root's count starts at none.
    assert policy._tasks_of_user() >= 0
    monkeypatch.setattr(policy.os, "geteuid", lambda: 0)
    assert policy._tasks_of_user() == 0


def test_an_unknown_machine_has_no_filter(monkeypatch):
    monkeypatch.setattr(policy.platform, "machine", lambda: "riscv64")
    assert "riscv64" in policy.known_missing()["seccomp"]


def test_a_kernel_without_landlock_is_named(monkeypatch):
    def refuse():
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(landlock, "version", refuse)
    assert "not supported" in policy.known_missing()["Landlock"]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("seconds", 0.0),
        ("seconds", float("inf")),
        ("seconds", float("nan")),
        ("cpu_seconds", -1),
        ("threads", 0),
        ("memory_mib", 64),
    ],
)
def test_limits_are_checked(field, value):
    with pytest.raises(InputError, match=field):
        Limits(**{field: value})
