"""What model-written programs try, and that none of it leaves the sandbox.

Every attempt is one that a broken sandbox would survive, too: signal 0 instead of a
kill, a few forks instead of a bomb, a victim file of the test's own.
"""

import marshal
import os
import pathlib
import platform
import subprocess
import sys
import tempfile
import time

import pytest

from sparse_jax.evaluate.code_tests import Limits, check_programs, missing_layers
from sparse_jax.evaluate.sandbox import landlock, policy, process

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or bool(missing_layers()),
    reason="this machine lacks a layer of the sandbox",
)

ROOT = os.geteuid() == 0
PARENT = os.getpid()

# Every one must raise PermissionError with all layers, and where the tests run as root
# also without the change of user, by which alone the kernel would refuse some of them.
FORBIDDEN = {
    "fork bomb": "import os\nfor _ in range(4): os.fork()",
    "forkpty": "import os\nos.forkpty()",
    "subprocess": "import subprocess\nsubprocess.run(['true'])",
    "spawn": "import os\nos.posix_spawn('/bin/true', ['true'], {})",
    "exec": "import os\nos.execv('/bin/true', ['true'])",
    "daemon": "import os\nif os.fork() == 0: os.setsid()",
    "signal parent": f"import os\nos.kill({PARENT}, 0)",
    "signal own group": "import os\nos.kill(0, 0)",
    "signal everybody": "import os\nos.kill(-1, 0)",
    "signal a group": f"import os\nos.killpg(os.getpgid({PARENT}), 0)",
    "signal by descriptor": (
        "import os, signal\n"
        "try: fd = os.pidfd_open(os.getpid())\n"
        "except OSError: raise PermissionError"
    ),
    "tcp": "import socket\nsocket.create_connection(('127.0.0.1', 9))",
    "udp": "import socket\nsocket.socket(socket.AF_INET, socket.SOCK_DGRAM)",
    "unix socket": "import socket\nsocket.socket(socket.AF_UNIX)",
    "socket pair": "import socket\nsocket.socketpair()",
    "netlink": "import socket\nsocket.socket(socket.AF_NETLINK, socket.SOCK_RAW)",
    "users": "open('/etc/passwd').read()",
    "parent's environment": f"open('/proc/{PARENT}/environ').read()",
    "parent's memory": f"open('/proc/{PARENT}/mem', 'rb')",
    "own memory": "open('/proc/self/mem', 'r+b')",
    "list a folder": "import os\nos.listdir('/')",
    "terminal": "open('/dev/tty')",
    "write outside": "open('/tmp/sparse_jax_outside', 'w')",
    "shared memory": "open('/dev/shm/sparse_jax', 'w')",
    "memory file": "import os\nos.memfd_create('x')",
    "folder": "import os\nos.mkdir('folder')",
    "link": "import os\nopen('a', 'w').close()\nos.link('a', 'b')",
    "symbolic link": "import os\nos.symlink('/etc/passwd', 'a')",
    "pipe by name": "import os\nos.mkfifo('a')",
    "device": "import os\nos.mknod('a')",
    "mode": "import os\nopen('a', 'w').close()\nos.chmod('a', 0o777)",
    "owner": "import os\nopen('a', 'w').close()\nos.chown('a', 0, 0)",
    "truncate without writing": (
        "import os\nos.open('/dev/null', os.O_RDONLY | os.O_TRUNC)"
    ),
    "become root": "import os\nos.setuid(0)",
    "priority": f"import os\nos.setpriority(os.PRIO_PROCESS, {PARENT}, 1)",
    "affinity": f"import os\nos.sched_setaffinity({PARENT}, {{0}})",
    "limits of others": (
        f"import resource\nresource.prlimit({PARENT}, resource.RLIMIT_CPU)"
    ),
    "a signal by ownership": (
        f"import fcntl\nfcntl.fcntl(0, fcntl.F_SETOWN, {PARENT})"
    ),
    "new session": "import os\nos.setsid()",
    "reserved disk": (
        "import os\nfile = open('a', 'w')\nos.posix_fallocate(file.fileno(), 0, 9)"
    ),
}


def one(program, **limits):
    # The layers were found once for all tests, above.
    (outcome,) = check_programs(
        [program], limits=Limits(**limits), probe=lambda limits: {}
    )
    return outcome


@pytest.mark.parametrize("without", [(), ("user",)], ids=["all layers", "same user"])
def test_forbidden(without):
    outcomes = check_programs(
        list(FORBIDDEN.values()),
        unsafe=bool(without),
        probe=lambda limits: dict.fromkeys(without, "left out by this test"),
    )
    for name, outcome in zip(FORBIDDEN, outcomes, strict=True):
        assert not outcome.passed, name
        assert outcome.reason.startswith("PermissionError"), (name, outcome.reason)
    assert not pathlib.Path("/tmp/sparse_jax_outside").exists()


# The system calls themselves, past Python: each must return -1.
RAW = """
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
numbers = {numbers}
for name, number in numbers.items():
    result = libc.syscall(number, 0, 0, 0, 0, 0, 0)
    assert result == -1 and ctypes.get_errno() in (1, 38), (name, result)
"""
NUMBERS = {
    "x86_64": {
        **{"fork": 57, "vfork": 58, "clone": 56, "clone3": 435, "execveat": 322},
        **{"socket": 41, "ptrace": 101, "mount": 165, "unshare": 272, "setns": 308},
        **{"bpf": 321, "perf_event_open": 298, "keyctl": 250, "userfaultfd": 323},
        **{"io_uring_setup": 425, "process_vm_readv": 310, "process_vm_writev": 311},
        **{"pidfd_send_signal": 424, "pidfd_getfd": 438, "open_by_handle_at": 304},
        **{"personality": 135, "shmget": 29, "msgget": 68, "mq_open": 240},
        **{"inotify_init1": 294, "splice": 275, "seccomp": 317, "openat2": 437},
        **{"tkill": 200, "rt_sigqueueinfo": 129, "chroot": 161, "not yet made": 600},
    },
    "aarch64": {
        **{"clone": 220, "clone3": 435, "execveat": 281, "socket": 198, "ptrace": 117},
        **{"mount": 40, "unshare": 97, "setns": 268, "bpf": 280, "keyctl": 219},
        **{"perf_event_open": 241, "userfaultfd": 282, "io_uring_setup": 425},
        **{"process_vm_readv": 270, "pidfd_send_signal": 424, "tkill": 130},
        **{"open_by_handle_at": 265, "memfd_create": 279, "not yet made": 600},
    },
}


def test_forbidden_system_calls():
    numbers = NUMBERS[platform.machine()]
    assert one(RAW.format(numbers=numbers)).reason == "passed"


@pytest.mark.skipif(platform.machine() != "x86_64", reason="x86's other two ABIs")
@pytest.mark.parametrize(
    "program",
    [
        # getpid by the 32-bit entry, by its number there.
        "import ctypes, mmap\n"
        "page = mmap.mmap(-1, 4096, prot=7)\n"
        "page.write(bytes.fromhex('b814000000cd80c3'))\n"
        "code = ctypes.addressof(ctypes.c_char.from_buffer(page))\n"
        "ctypes.CFUNCTYPE(ctypes.c_int)(code)()",
        "import ctypes\nctypes.CDLL(None).syscall(0x40000000 | 39)",
    ],
    ids=["i386", "x32"],
)
def test_other_abis_are_killed(program):
    assert one(program).reason == "crashed: SIGSYS"


@pytest.mark.parametrize("without", [(), ("user",), ("user", "seccomp")], ids=str)
@pytest.mark.parametrize(
    "attack",
    ["os.remove({!r})", "open({!r}, 'w')", "os.rename({!r}, 'mine')", "open({!r})"],
)
def test_a_file_outside_survives(tmp_path, attack, without):
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (outcome,) = check_programs(
        ["import os\n" + attack.format(str(victim))],
        unsafe=True,
        probe=lambda limits: dict.fromkeys(without, "left out by this test"),
    )
    assert not outcome.passed and "Error" in outcome.reason
    assert victim.read_text() == "precious"


@pytest.mark.parametrize("abi", [1, 3, 6])
def test_older_landlocks_hold_as_well(tmp_path, monkeypatch, abi):
    # A kernel that is asked to refuse no more than an older one could.
    if landlock.version() < abi:
        pytest.skip(f"this kernel's Landlock is older than {abi}")
    monkeypatch.setattr(landlock, "version", lambda: abi)
    victim = tmp_path / "victim"
    victim.write_text("precious")
    attacks = [
        f"open({str(victim)!r}, 'r+').truncate(0)",
        f"import os\nos.truncate({str(victim)!r}, 0)",
        f"import os\nos.open({str(victim)!r}, os.O_RDONLY | os.O_TRUNC)",
        f"import os\nos.rename({str(victim)!r}, 'mine')",
        f"import os\nos.remove({str(victim)!r})",
        f"open({str(tmp_path)!r} + '/new', 'w')",
        FORBIDDEN["parent's environment"],
    ]
    *outcomes, ordinary = check_programs(
        [*attacks, "open('a', 'w').write('x')\nassert open('a').read() == 'x'"],
        unsafe=True,
        probe=lambda limits: {"user": "left out by this test"},
    )
    for attack, outcome in zip(attacks, outcomes, strict=True):
        # EXDEV is how the first Landlock refuses a rename.
        refusal = ("PermissionError", "OSError: [Errno 18]")
        assert outcome.reason.startswith(refusal), (attack, outcome.reason)
    assert ordinary.reason == "passed"
    assert victim.read_text() == "precious"
    assert list(tmp_path.iterdir()) == [victim]


def test_endless_loop():
    loop = one("while True: pass", cpu_seconds=1)
    assert (loop.passed, loop.reason) == (False, "killed: over 1 s of CPU time")


STUBBORN = """
import signal, threading, time
for number in set(range(1, 65)) - {signal.SIGKILL, signal.SIGSTOP, 32, 33}:
    signal.signal(number, signal.SIG_IGN)
threading.Thread(target=time.sleep, args=(60,)).start()
time.sleep(60)
"""


STOPPED = "import os, signal\nos.kill(os.getpid(), signal.SIGSTOP)"


@pytest.mark.parametrize("program", [STUBBORN, STOPPED], ids=["ignores", "stopped"])
def test_a_program_that_does_not_end_is_killed_and_leaves_nothing(program, monkeypatch):
    made, make = [], tempfile.mkdtemp

    def remember(*arguments, **options):
        made.append(pathlib.Path(make(*arguments, **options)))
        return str(made[-1])

    # Not all of the folder is looked at: other tests use it at the same time.
    monkeypatch.setattr(tempfile, "mkdtemp", remember)
    outcome = one(program, seconds=0.6)
    assert (outcome.passed, outcome.reason) == (False, "killed: over 0.6 s")
    assert outcome.seconds < 10
    assert made
    assert not any(path.exists() for path in made)
    assert not children()


def children():
    """Command lines of this process's sandboxed children."""
    found = []
    for path in pathlib.Path("/proc").glob("[0-9]*"):
        try:
            parent = path.joinpath("stat").read_text().rpartition(")")[2].split()[1]
            command = path.joinpath("cmdline").read_bytes()
        except OSError:
            continue
        if int(parent) == PARENT and os.fsencode(process.CHILD) in command:
            found.append(command)
    return found


FAILING = {
    "memory hog": ("x = bytearray(1 << 32)", "MemoryError"),
    "memory by small steps": ("x = [0]\nwhile True: x += x", "MemoryError"),
    "huge file": ("open('a', 'wb').write(bytes(1 << 25))", "OSError: [Errno 27]"),
    "thread bomb": (
        "import threading, time\n"
        "for _ in range(99): threading.Thread(target=time.sleep, args=(9,)).start()",
        "RuntimeError: can't start new thread",
    ),
    "deep recursion": ("def f(): f()\nf()", "RecursionError"),
    "deeper recursion": (
        "import sys\nsys.setrecursionlimit(1 << 30)\n"
        "class A:\n def __repr__(self): return repr(self)\nrepr(A())",
        ("crashed: SIGSEGV", "RecursionError"),  # from Python 3.12 on
    ),
    "null pointer": ("import ctypes\nctypes.string_at(0)", "crashed: SIGSEGV"),
    "many descriptors": ("import os\nwhile True: os.dup(0)", "OSError: [Errno 24]"),
    "closed stdout": ("import sys\nsys.stdout.close()\nprint(1)", "ValueError"),
    "raise a limit": (
        "import resource\nresource.setrlimit(resource.RLIMIT_AS, (1 << 40, 1 << 40))",
        "ValueError",
    ),
}


@pytest.mark.parametrize(("program", "reason"), FAILING.values(), ids=FAILING)
def test_failing(program, reason):
    outcome = one(program, memory_mib=512)
    assert not outcome.passed and outcome.reason.startswith(reason), outcome.reason


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        (
            "for i in range(20): open(str(i), 'wb').write(bytes(1 << 20))",
            "killed: over 4 MiB on disk",
        ),
        ("for i in range(99): open(str(i), 'w').close()", "killed: over 64 files"),
        (
            "import os\nfor i in range(20):\n"
            " open('a', 'wb').write(bytes(1 << 20))\n os.remove('a')",
            "killed: over 4 MiB written",
        ),
        ("for i in range(20): print('x' * (1 << 20))", "killed: over 4 MiB written"),
    ],
    ids=["size", "number", "deleted", "output"],
)
def test_files_are_counted_together(program, reason):
    outcome = one(program + "\nimport time\ntime.sleep(9)", disk_mib=4)
    assert (outcome.passed, outcome.reason) == (False, reason)


ORDINARY = """
import os, sys, signal, tempfile, threading, time
assert os.listdir() == [] and sys.stdin.read() == ""
with open("a", "w+") as file:
    file.write("x" * 1000)
    file.truncate(10)
    file.seek(0)
    assert file.read() == "x" * 10
os.rename("a", "b")
os.remove("b")
with tempfile.TemporaryFile() as file:
    file.write(b"x")
thread = threading.Thread(target=time.sleep, args=(0.001,))
thread.start()
thread.join()
os.kill(os.getpid(), 0)
signal.signal(signal.SIGUSR1, signal.SIG_IGN)
signal.raise_signal(signal.SIGUSR1)
print("to nobody", file=sys.stderr)
assert set(os.environ) <= {"LC_ALL", "MALLOC_ARENA_MAX", "PYTHONHASHSEED", "TMPDIR"}
assert os.getuid() != 0 and os.getgid() != 0 and os.getgroups() in ([], [os.getgid()])
assert __name__ != "__main__"
"""


def test_ordinary_programs_run():
    libraries = "asyncio bisect cmath collections copy dataclasses datetime decimal"
    libraries += " encodings.idna fractions functools hashlib heapq importlib.util"
    libraries += " itertools json math numbers operator random re sqlite3 ssl"
    libraries += " statistics string struct textwrap typing unittest zoneinfo"
    imports = "".join(f"import {name}\n" for name in libraries.split())
    program = ORDINARY if ROOT else ORDINARY.replace("assert os.getuid", "os.getuid")
    for outcome in check_programs([program, imports]):
        assert outcome.reason == "passed"


def test_the_order_of_sets_repeats():
    # Two processes, one order, or a program would pass on some days only.
    program = "assert list(set('abcdefgh')) == {}"
    order = one("raise ValueError(list(set('abcdefgh')))").reason.partition(": ")[2]
    assert one(program.format(order)).passed


def test_capabilities_are_gone():
    program = """
import ctypes
header, data = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
libc = ctypes.CDLL(None)
assert libc.capget(ctypes.byref(header), ctypes.byref(data)) == 0
assert not any(data), list(data)
"""
    (outcome,) = check_programs([program])
    assert outcome.reason == "passed"


EVALUATOR = """
import marshal, os, subprocess, sys, time
child, job, directory = sys.argv[1:]
with open(job, "rb") as file:
    content = marshal.load(file) | {"parent": os.getpid()}
with open(job, "wb") as file:
    marshal.dump(content, file)
with open(job, "rb") as file:
    started = subprocess.Popen([sys.executable, child], stdin=file, cwd=directory)
print(started.pid, flush=True)
time.sleep(60)
"""


def test_programs_end_with_their_evaluator(tmp_path):
    # An evaluator that is killed leaves no program running; this one is small, so that
    # it starts at once. Its programs report where it writes.
    job = policy.make(Limits()).job | {"channel": 1, "user": policy.users(1)[0]}
    job |= {"program": "import time; time.sleep(60)", "token": b""}
    (tmp_path / "job").write_bytes(marshal.dumps(job))
    command = [sys.executable, "-c", EVALUATOR, process.CHILD, tmp_path / "job", "."]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=tmp_path) as evaluator:
        lines = {evaluator.stdout.readline(), evaluator.stdout.readline()}
        evaluator.kill()
    assert b"ready\n" in lines
    (pid,) = map(int, lines - {b"ready\n"})
    deadline = time.monotonic() + 10
    while pathlib.Path(f"/proc/{pid}").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not pathlib.Path(f"/proc/{pid}").exists()
