"""The process that runs one program: it locks itself in, then runs it, then reports.

Started as a script by `process.py`, in a bare interpreter: it imports nothing of this
package, and of the standard library only what is quick. Its job comes on standard
input, its report goes to the descriptor that the job names:

    "layer NAME: REASON;..."   these protections could not be put up: nothing has run
    "ready"                    all protections are up; the program starts
    TOKEN                      its last statement, thus its last test, has returned
    "failed REASON"            it raised

Whatever the program does with its interpreter, it does inside the protections; the
token only keeps it from passing by accident (`sys.exit(0)`, `os._exit(0)`, printing).
"""

import ctypes
import marshal
import os
import resource
import signal
import sys
import types

PR_SET_PDEATHSIG, PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS = 1, 22, 38
SECCOMP_MODE_FILTER = 2
RULE_PATH_BENEATH = 1
CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446
CAPABILITY_VERSION_3 = 0x20080522

LIBC = ctypes.CDLL(None, use_errno=True)


class Filter(ctypes.Structure):
    """`struct sock_fprog`."""

    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_void_p))


class PathRule(ctypes.Structure):
    """`struct landlock_path_beneath_attr`."""

    _pack_ = 1
    _fields_ = (("rights", ctypes.c_uint64), ("folder", ctypes.c_int32))


def call(function, *arguments):
    """Call a function of libc; -1 is an OSError."""
    result = function(*arguments)
    if result == -1:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


def prctl(option, *arguments):
    """`prctl`, whose arguments are all unsigned longs."""
    words = [ctypes.c_ulong(a) for a in (*arguments, 0, 0, 0, 0)[:4]]
    call(LIBC.prctl, ctypes.c_int(option), *words)


def limit(job):
    """Resource limits; a hard limit that is lower already stays."""
    for which, soft, hard in job["limits"]:
        bound = resource.getrlimit(which)[1]
        if bound != resource.RLIM_INFINITY:
            soft, hard = min(soft, bound), min(hard, bound)
        resource.setrlimit(which, (soft, hard))


def forbid_new_privileges(job):
    """No set-uid program or file capability gives rights from here on."""
    prctl(PR_SET_NO_NEW_PRIVS, 1)


def restrict_files(job):
    """Landlock: all rights that the kernel handles, except those of the rules."""
    handled = (ctypes.c_uint64 * len(job["handled"]))(*job["handled"])
    size = ctypes.c_size_t(ctypes.sizeof(handled))
    ruleset = call(LIBC.syscall, CREATE_RULESET, ctypes.byref(handled), size, 0)
    for path, rights in job["rules"]:
        folder = os.open(path or ".", os.O_PATH | os.O_CLOEXEC)
        rule = ctypes.byref(PathRule(rights, folder))
        call(LIBC.syscall, ADD_RULE, ruleset, RULE_PATH_BENEATH, rule, 0)
        os.close(folder)
    call(LIBC.syscall, RESTRICT_SELF, ruleset, 0)
    os.close(ruleset)


def become_nobody(job):
    """Root becomes a user that nothing belongs to; capabilities go in any case."""
    user = job["user"]
    if user is not None:
        os.setgroups([])
        os.setresgid(user, user, user)
        os.setresuid(user, user, user)
    header = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION_3, 0)
    call(LIBC.capset, ctypes.byref(header), ctypes.byref((ctypes.c_uint32 * 6)()))


def filter_calls(job):
    """Seccomp: the allow-list that the parent assembled."""
    own = os.getpid()
    code = b"".join(
        bytes(ctypes.c_uint16(operation))
        + bytes((yes, no))
        # A constant of None stands for the number of this process.
        + bytes(ctypes.c_uint32(own if constant is None else constant))
        for operation, yes, no, constant in job["filter"]
    )
    memory = ctypes.create_string_buffer(code, len(code))
    program = Filter(len(job["filter"]), ctypes.addressof(memory))
    prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.addressof(program))


# In this order: Landlock opens its paths with the rights it was started with, and
# nothing but the program comes after the filter.
LAYERS = {
    "resource limits": limit,
    "no_new_privs": forbid_new_privileges,
    "Landlock": restrict_files,
    "user": become_nobody,
    "seccomp": filter_calls,
}


def hold_library():
    """Open the folders of the library, by which they stay reachable as another user.

    Python may lie in a home directory that only its owner can enter; a path through
    `/proc/self/fd` starts behind that door. Landlock has its say all the same.
    """
    flags = os.O_PATH | os.O_DIRECTORY
    return {p: os.open(p, flags) for p in sys.path if os.path.isdir(p)}


def reach_library(held):
    """Replace the folders that cannot be entered any more by their descriptors."""
    closed = {p: fd for p, fd in held.items() if not os.access(p, os.R_OK | os.X_OK)}

    def reachable(path):
        for folder, descriptor in closed.items():
            if path == folder or path.startswith(f"{folder}/"):
                return f"/proc/self/fd/{descriptor}{path[len(folder) :]}"
        return path

    sys.path[:] = map(reachable, sys.path)
    for module in list(sys.modules.values()):
        if hasattr(module, "__path__"):
            module.__path__ = [reachable(p) for p in module.__path__]
    for folder in held.keys() - closed.keys():
        os.close(held[folder])


def lock_in(job):
    """Put up every layer of the job; the names of those that failed, and why."""
    failed = {}
    held = hold_library()
    for name, apply in LAYERS.items():
        if name == "seccomp":
            # Cleared by a change of user, forbidden by the filter.
            prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
            reach_library(held)
        if name in job["layers"]:
            try:
                apply(job)
            except (OSError, ValueError) as error:
                failed[name] = str(error)
    return failed


def run(source):
    """Run a program as a module; None if its last statement returned."""
    module = types.ModuleType("program")
    sys.modules["program"] = module
    try:
        exec(compile(source, "program", "exec", dont_inherit=True), module.__dict__)
    except SystemExit:
        return "SystemExit before the tests ended"
    except BaseException as error:
        return f"{type(error).__name__}: {error}".removesuffix(": ")
    return None


def main():
    """Read the job, lock in, run, report."""
    job = marshal.loads(sys.stdin.buffer.read())
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    # Before the program can replace them.
    channel, write, leave = job["channel"], os.write, os._exit

    failed = lock_in(job)
    if failed:
        reasons = ";".join(f"{name}: {why}" for name, why in failed.items())
        write(channel, f"layer {reasons}\n".encode())
        leave(0)
    if os.getppid() != job["parent"]:
        leave(0)  # The parent died before it could be watched.
    write(channel, b"ready\n")
    reason = run(job["program"])
    if reason is None:
        write(channel, job["token"])
    else:
        write(channel, f"failed {reason[:300]}".encode(errors="replace"))
    leave(0)


if __name__ == "__main__":
    main()
