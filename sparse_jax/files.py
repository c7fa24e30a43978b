"""Files written so that a kill leaves the old content or the new."""

import contextlib
import fcntl
import json
import os
import pathlib
from collections.abc import Iterator
from typing import IO, Any

from sparse_jax.types import InputError


def write_file(path: pathlib.Path, content: bytes) -> None:
    """Replaces a file in one step, so that a kill leaves the old one or the new one.

    Raises:
      InputError: the disk is full or read-only.
    """
    with replace_file(path) as partial:
        partial.write_bytes(content)


@contextlib.contextmanager
def replace_file(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Gives a temporary file that takes the place of `path`, on the disk, at the end.

    Raises:
      InputError: the disk is full or read-only.
    """
    # The same name every time: what a kill leaves is written over.
    partial = path.with_name(f".{path.name}.partial")
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield partial
            _sync(partial)
            os.replace(partial, path)
            _sync(path.parent)  # the name, too, must reach the disk
        finally:
            partial.unlink(missing_ok=True)  # a full disk needs its room


def _sync(path: pathlib.Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def lock(path: pathlib.Path) -> IO[str]:
    """Locks a file, which it makes if need be, until the returned one is closed.

    Raises:
      InputError: another process has locked it.
    """
    file = path.open("w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.close()
        raise InputError(
            f"{path.parent}: another process is working on it; wait for it, or "
            "choose another place"
        ) from error
    return file


def write_json(path: pathlib.Path, value: Any) -> None:
    """Writes JSON in one step; raises as `write_file`, and ValueError for NaN."""
    text = json.dumps(value, indent=2, allow_nan=False) + "\n"
    write_file(path, text.encode())


def read_json(path: pathlib.Path) -> Any:
    """Reads JSON.

    Raises:
      InputError: the file is missing or damaged.
    """
    with _damage(path):
        return json.loads(path.read_text("utf-8"))


def write_line(path: pathlib.Path, row: dict[str, Any]) -> None:
    """Appends one JSON line by rewriting the file, so that no line is ever torn.

    Raises:
      InputError: the disk is full or read-only, or the file is damaged.
    """
    rows = [*read_lines(path), row]
    write_file(path, "".join(json.dumps(r) + "\n" for r in rows).encode())


def read_lines(path: pathlib.Path) -> list[dict[str, Any]]:
    """The rows of a JSON-lines file; none when there is no file.

    Raises:
      InputError: the file is damaged.
    """
    if not path.exists():
        return []
    with _damage(path):
        return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


@contextlib.contextmanager
def disk_errors(path: pathlib.Path) -> Iterator[None]:
    """Turns the system's errors on writing into an InputError that names the path."""
    try:
        yield
    except OSError as error:
        raise InputError(
            f"{path}: cannot be written ({error.strerror or error}); "
            "free some space or choose another place"
        ) from error


@contextlib.contextmanager
def _damage(path: pathlib.Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path}: cannot be read as JSON ({error}); restart the stage it belongs "
            "to with --restart_from"
        ) from error
