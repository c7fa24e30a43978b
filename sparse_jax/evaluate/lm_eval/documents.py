"""The documents of the local tasks: what this project's own tasks read."""

from collections.abc import Sequence
from typing import Any

from sparse_jax.evaluate import tasks
from sparse_jax.types import InputError


def documents(*, task: str, data_dir: str | None = None, **_: Any) -> dict[str, Any]:
    """The documents of a task, as lm-eval's `custom_dataset` gives them to a YAML file.

    They come from the same files in the same formats, and with the same prompts, as
    those of `launch/evaluate.py --tasks`.

    Args:
      task: name of this project's task.
      data_dir: folder with the files, from lm-eval's `--metadata data_dir=DIR`.

    Returns:
      Split -> a `datasets.Dataset` with the fields prompt, prompts (of partial
      scoring), target, choices and gold, see `tasks.Document`: "test", and "train", the
      task's own file of examples, which is empty where there is none.

    Raises:
      InputError: no folder is named, or it has no file of the task.
    """
    import datasets  # pyrefly: ignore[missing-import]

    if data_dir is None:
        raise InputError(
            f"local_{task} needs the folder with its file: add --metadata data_dir=DIR"
        )
    read = {
        "test": tasks.read(task, str(data_dir)),
        "train": tasks.read_shots(task, str(data_dir)),
    }
    return {
        split: datasets.Dataset.from_list(_records(found))
        for split, found in read.items()
    }


def _records(found: Sequence[tasks.Document]) -> list[dict[str, Any]]:
    return [
        {
            "prompt": document.prompt,
            "prompts": list(document.prompts),
            "target": document.target,
            "choices": list(document.choices),
            "gold": document.gold,
        }
        for document in found
    ]
