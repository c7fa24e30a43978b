"""Small files, written so that a kill leaves the old content or the new."""

import contextlib
import json
import os
import pathlib
from collections.abc import Iterator
from typing import Any

from sparse_jax.types import InputError


def write_file(path: pathlib.Path, content: bytes) -> None:
    """Replaces a file in one step, so that a kill leaves the old one or the new one.

    Raises:
      InputError: the disk is full or read-only.
    """
    # The same name every time: what a kill leaves is written over.
    partial = path.with_name(f".{path.name}.partial")
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with partial.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, path)
        except OSError:
            partial.unlink(missing_ok=True)  # a full disk needs its room
            raise


def write_json(path: pathlib.Path, value: Any) -> None:
    """Writes JSON in one step; raises as `write_file`."""
    write_file(path, (json.dumps(value, indent=2) + "\n").encode())


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
            "free some space or choose another --workdir"
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
