"""Directories that appear whole or not at all."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from sparse_jax.files import disk_errors
from sparse_jax.types import InputError


@contextlib.contextmanager
def replace_directory(directory: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Gives a temporary directory that takes the place of `directory` at the end.

    What a killed run has left behind is removed by the next one.

    Args:
      directory: absent, empty, or a model directory when `overwrite` is set.
      overwrite: replace a directory that holds a `config.json`.

    Raises:
      InputError: the directory holds something that may not be replaced, or the disk
        is full or read-only.
    """
    directory = Path(os.path.abspath(directory))
    partial = directory.with_name(f".{directory.name}.partial")
    old = directory.with_name(f".{directory.name}.old")
    with disk_errors(directory):
        try:
            check_free(directory, overwrite=overwrite)
            for leftover in (partial, old):
                if leftover.exists():
                    shutil.rmtree(leftover)
            partial.mkdir(parents=True)
            yield partial
            if directory.exists():
                os.replace(directory, old)
            os.replace(partial, directory)
            shutil.rmtree(old, ignore_errors=True)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def check_free(directory: Path, *, overwrite: bool = False) -> None:
    """Raises InputError unless `replace_directory` may write to `directory`."""
    if not directory.exists():
        return
    if not directory.is_dir():
        raise InputError(f"{directory}: is a file; choose another place")
    if not any(directory.iterdir()):
        return
    if not overwrite:
        raise InputError(f"{directory}: is not empty; choose another place")
    if not (directory / "config.json").is_file():
        raise InputError(
            f"{directory}: holds no config.json, so it is no model that may be "
            "overwritten; choose another place"
        )
