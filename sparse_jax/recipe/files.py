"""Small JSON files, written so that a kill leaves the old content or the new."""

import json
import os
import pathlib
from typing import Any

from sparse_jax.types import InputError


def write_json(path: pathlib.Path, value: Any) -> None:
    """Writes JSON atomically, making the directory if needed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("w", encoding="utf-8") as file:
        json.dump(value, file, indent=2)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def read_json(path: pathlib.Path) -> Any:
    """Reads JSON.

    Raises:
      InputError: the file is missing or damaged.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path}: cannot be read as JSON ({error}); restart the stage it belongs "
            "to with --restart_from"
        ) from error


def write_line(path: pathlib.Path, row: dict[str, Any]) -> None:
    """Appends one JSON line by rewriting the file, so that no line is ever torn."""
    rows = [*read_lines(path), row]
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    os.replace(partial, path)


def read_lines(path: pathlib.Path) -> list[dict[str, Any]]:
    """The rows of a JSON-lines file; none when there is no file."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
