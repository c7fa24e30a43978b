"""The tasks of the harness: names, files, formats, prompts and metrics."""

import difflib
from collections.abc import Mapping
from pathlib import Path

from sparse_jax.evaluate.tasks import (
    choice,
    code,
    exam,
    files,
    gsm8k,
    lambada,
    summary,
)
from sparse_jax.evaluate.tasks.document import (
    Document,
    Judgement,
    Judging,
    Metrics,
    Task,
)
from sparse_jax.types import InputError

__all__ = [
    "TASKS",
    "Document",
    "Judgement",
    "Judging",
    "Metrics",
    "Task",
    "get",
    "read",
    "read_shots",
]

TASKS: Mapping[str, Task] = {
    **choice.TASKS,
    **exam.TASKS,
    **lambada.TASKS,
    **gsm8k.TASKS,
    **code.TASKS,
    **summary.TASKS,
}
"""Name -> task."""


def get(name: str) -> Task:
    """The task of a name.

    Raises:
      InputError: there is none, with the nearest names.

    Example:
      >>> get("arc_esy")
      Traceback (most recent call last):
      sparse_jax.types.InputError: there is no task 'arc_esy'; did you mean arc_easy?
    """
    if name not in TASKS:
        near = difflib.get_close_matches(name, TASKS, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}?" if near else f"known: {[*TASKS]}"
        raise InputError(f"there is no task {name!r}; {hint}")
    return TASKS[name]


def read(name: str, data_dir: str | Path) -> list[Document]:
    """The documents that a task asks.

    Args:
      name: of the task.
      data_dir: a folder with the task's file under one of its usual names; or a file.

    Raises:
      InputError: no such task, no file of it, or a record that cannot be read.
    """
    task = get(name)
    return task.select(files.read(task, files.find(name, task, data_dir)))


def read_shots(name: str, data_dir: str | Path) -> list[Document]:
    """The documents of a task's own file of examples; none where there is no such file.

    Args:
      name: of the task.
      data_dir: see `read`.

    Raises:
      InputError: see `read`.
    """
    task = get(name)
    return files.read(task, files.find_shots(task, data_dir))
