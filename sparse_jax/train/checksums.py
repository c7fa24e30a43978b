"""The list of a checkpoint's files with their sizes and checksums.

    {"files": {"state/d/0a1b...": {"bytes": 8192, "crc32": "0d4a1185"}, ...},
     "crc32": "77073096"}                                      of the list itself

It is the last file to be written, before the checkpoint gets its name: a checkpoint
without it is not whole. CRC-32 finds every burst of up to 32 wrong bits, and all but
one in 4e9 of other damages; it is no defence against forgery.
"""

import json
import pathlib
import stat
import zlib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from sparse_jax.files import write_file

FILE = "checksums.json"

_BLOCK = 2**22  # bytes read at a time
_THREADS = 8  # zlib lets go of the interpreter; network disks like several readers


def write(directory: pathlib.Path) -> None:
    """Lists every file below a directory in its checksums.json.

    Raises:
      InputError: the disk is full or read-only.

    Example:
      >>> import tempfile
      >>> folder = pathlib.Path(tempfile.mkdtemp())
      >>> _ = (folder / "weights").write_bytes(bytes(100))
      >>> write(folder)
      >>> problem(folder)
      >>> _ = (folder / "weights").write_bytes(bytes(99))
      >>> problem(folder)
      'weights has 99 bytes instead of 100'
    """
    paths = sorted(p for p in directory.rglob("*") if p.is_file() and p.name != FILE)
    with ThreadPoolExecutor(_THREADS) as threads:
        sums = threads.map(_checksum, paths)
        files = {
            path.relative_to(directory).as_posix(): {"bytes": size, "crc32": crc}
            for path, (size, crc) in zip(paths, sums, strict=True)
        }
    content = {"files": files, "crc32": _crc(_canonical(files))}
    write_file(directory / FILE, json.dumps(content, indent=1).encode())


def problem(directory: pathlib.Path, *, part: int = 0, parts: int = 1) -> str | None:
    """The first thing wrong with a directory that `write` has listed, or None.

    Files that are not in the list do not count.

    Args:
      directory: holds checksums.json and the files.
      part: of the files, this one of `parts` is read; the list is always checked.
      parts: into how many parts the files are divided, for so many readers.

    Returns:
      What is wrong, beginning with the file's path inside the directory.
    """
    try:
        content = json.loads((directory / FILE).read_bytes())
        files: dict[str, Any] = content["files"]
        whole = content["crc32"] == _crc(_canonical(files))
    except FileNotFoundError:
        return f"{FILE} is missing"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{FILE} cannot be read ({type(error).__name__}: {error})"
    if not whole:
        return f"{FILE} is not as it was written: its own checksum differs"
    mine = list(files.items())[part::parts]
    with ThreadPoolExecutor(_THREADS) as threads:
        return _first(threads.map(lambda item: _file_problem(directory, *item), mine))


def _file_problem(
    directory: pathlib.Path, name: str, wanted: dict[str, Any]
) -> str | None:
    path = directory / name
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            return f"{name} is not a file"
        if found.st_size != wanted["bytes"]:
            return f"{name} has {found.st_size} bytes instead of {wanted['bytes']}"
        _, crc = _checksum(path)
    except FileNotFoundError:
        return f"{name} is missing"
    except OSError as error:
        return f"{name} cannot be read ({error.strerror})"
    if crc != wanted["crc32"]:
        return f"{name} is not as it was written: CRC-32 {crc}, not {wanted['crc32']}"
    return None


def _checksum(path: pathlib.Path) -> tuple[int, str]:
    """Bytes and CRC-32 of a file, which need not fit in memory."""
    crc = size = 0
    block = memoryview(bytearray(_BLOCK))
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(block):
            crc = zlib.crc32(block[:count], crc)
            size += count
    return size, f"{crc:08x}"


def _crc(content: bytes) -> str:
    return f"{zlib.crc32(content):08x}"


def _canonical(files: dict[str, Any]) -> bytes:
    return json.dumps(files, sort_keys=True).encode()


def _first(problems: Iterable[str | None]) -> str | None:
    return next((p for p in problems if p is not None), None)
