"""The files of a task in a directory of data sets."""

import glob
import itertools
import os
import re
from pathlib import Path
from typing import Any

from sparse_jax.data.records import SUFFIX
from sparse_jax.data.sources import SourceConfig
from sparse_jax.data.tasks import find_task
from sparse_jax.types import InputError

_HELD_OUT = re.compile(r"(^|[^a-z])(test|valid|validation|val|heldout)([^a-z]|$)")
_VALIDATION = re.compile(r"(^|[^a-z])(valid|validation|val)([^a-z]|$)")
_TRAIN = re.compile(r"(^|[^a-z])train([^a-z]|$)")


def task_source(
    path: str | os.PathLike[str],
    task: str,
    *,
    heldout_fraction: float = 0.1,
    **options: Any,
) -> SourceConfig:
    """A source of a task's records, from a file or from a directory of data sets.

    In a directory, at any depth, those JSON lines and Parquet files are the task's that
    have its word (`gsm8k`, `mbpp`, ...) in their name or in that of a folder; where
    none has, all of a directory that has it in its own name, else the files that lie in
    the directory itself. Of these, names with `validation` in them are held out, or
    with `test` where there are none; of those with neither the ones with `train`, if
    there are such, are trained on.

    Args:
      path: the directory; or a file, whose records are then all the task's.
      task: name in `tasks`.
      heldout_fraction: of the records, where no file is held out.
      **options: other fields of the source.

    Raises:
      InputError: there is no such task, or no file of it.
    """
    word, root = find_task(task).word, Path(path)
    options |= {"task": task, "heldout_fraction": heldout_fraction}
    if not root.is_dir():
        return SourceConfig(path=str(path), **options)
    files = [p for p in sorted(root.rglob("*")) if p.is_file() and _readable(p)]
    own = [p for p in files if word in str(p.relative_to(root)).lower()]
    whole = word in root.resolve().name.lower()
    own = own or [p for p in files if whole or p.parent == root]
    if not own:
        raise InputError(
            f"{root}: holds no file of task {task!r}; expected .jsonl or .parquet "
            f"files with {word!r} in their names or in that of a folder"
        )
    held = [p for p in own if _HELD_OUT.search(p.stem.lower())]
    rest = [p for p in own if p not in held]
    train = [p for p in rest if _TRAIN.search(p.stem.lower())] or rest
    if not train:
        raise InputError(
            f"{root}: has only held-out files of task {task!r}, such as {held[0]}; add "
            "the training files"
        )
    if held:
        validation = [p for p in held if _VALIDATION.search(p.stem.lower())]
        options["heldout"] = _one_path(validation or held)
    return SourceConfig(path=_one_path(train), **options)


def _readable(path: Path) -> bool:
    return bool(SUFFIX.search(path.name)) and ".csv" not in path.suffixes


def _one_path(files: list[Path]) -> str:
    """A path or a glob that means just these files."""
    if len(files) == 1:
        return str(files[0])
    names = [str(file) for file in files]
    begin = _common(names)
    end = _common([name[: len(begin) - 1 : -1] for name in names])[::-1]
    pattern = f"{glob.escape(begin)}*{glob.escape(end)}"
    if sorted(glob.glob(pattern)) != names:
        raise InputError(
            f"{files[0].parent}: {', '.join(file.name for file in files)} have no "
            "pattern of their own; name the task's file or a glob in place of the "
            "directory"
        )
    return pattern


def _common(names: list[str]) -> str:
    """What all names begin with."""
    letters = itertools.takewhile(lambda c: len({*c}) == 1, zip(*names, strict=False))
    return "".join(column[0] for column in letters)
