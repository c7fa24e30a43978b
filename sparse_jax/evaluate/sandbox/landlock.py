"""Which files a sandboxed program may open: Landlock's rules, by its version.

Everything that the kernel's version can handle is handled, thus refused, except under
the paths of `rules`: the program's own directory may be read and written (files only,
no folders), Python and the shared libraries may be read. Networking and signals to the
outside are refused here too where the version can (4 and 6): twice is safer than once.

Source: Linux `Documentation/userspace-api/landlock.rst`.
"""

import ctypes
import dataclasses
import os
import pathlib
import sys
import sysconfig

CREATE_RULESET = 444
"""System call number, the same on every machine; add_rule and restrict_self follow."""

WRITE_FILE, READ_FILE, READ_DIR, REMOVE_FILE, MAKE_REG = 1 << 1, 1 << 2, 1 << 3, 32, 256
TRUNCATE = 1 << 14

# The first version's rights are bits 0 to 12, later versions add one each.
_FILE_RIGHTS = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16}
_NET_RIGHTS = 0b11
_SCOPES = 0b11

_FOLDERS = (
    *("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib"),
    "/usr/share/zoneinfo",
)
_FILES = ("/etc/ld.so.cache", "/dev/urandom")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ruleset:
    """What `landlock_create_ruleset` and `landlock_add_rule` are called with.

    Attributes:
      handled: the attribute words (files, network, scopes) that the version knows.
      rules: (path, rights), existing paths only. The empty path is the directory in
        which the program runs.
    """

    handled: tuple[int, ...]
    rules: tuple[tuple[str, int], ...]


def version() -> int:
    """Landlock's version in the running kernel.

    Returns:
      1 or more.

    Raises:
      OSError: the kernel has none, or it is switched off.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    found = libc.syscall(CREATE_RULESET, None, ctypes.c_size_t(0), ctypes.c_uint32(1))
    if found < 1:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return found


def readable() -> list[str]:
    """Folders that hold this Python's library and the shared libraries it may load."""
    paths = sysconfig.get_paths()
    candidates = [paths["stdlib"], paths["platstdlib"], *_FOLDERS]
    candidates.append(os.path.join(sys.base_prefix, sys.platlibdir))
    candidates.append(os.path.join(sys.base_prefix, "lib"))
    # A virtual environment's own paths hold no standard library.
    found = {str(pathlib.Path(p).resolve()) for p in candidates if os.path.isdir(p)}
    return sorted(found - {"/"})


def ruleset(abi: int) -> Ruleset:
    """The rules for one version of Landlock.

    Args:
      abi: the kernel's version, from `version()`.

    Returns:
      Everything handled, the exceptions as rules.

    Example:
      >>> ruleset(1).handled == ((1 << 13) - 1,)
      True
      >>> len(ruleset(6).handled)
      3
    """
    files = (1 << _FILE_RIGHTS.get(abi, 16)) - 1
    handled = [files]
    if abi >= 4:
        handled.append(_NET_RIGHTS)
    if abi >= 6:
        handled.append(_SCOPES)
    own = READ_FILE | READ_DIR | WRITE_FILE | REMOVE_FILE | MAKE_REG | TRUNCATE
    rules = [("", own & files), ("/dev/null", READ_FILE | WRITE_FILE)]
    rules += [(path, READ_FILE | READ_DIR) for path in readable()]
    rules += [(path, READ_FILE) for path in _FILES if os.path.exists(path)]
    return Ruleset(handled=tuple(handled), rules=tuple(rules))
