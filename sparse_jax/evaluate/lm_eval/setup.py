"""Makes this project's models and tasks known to lm-eval."""

import functools
import importlib
import importlib.metadata
import os
import pathlib
import re

from sparse_jax.evaluate.lm_eval.model import Adapter
from sparse_jax.types import InputError

LOCAL_TASKS = pathlib.Path(__file__).parent / "local_tasks"
"""The folder of local tasks, for lm-eval's `include_path`."""

NAME = "sparse_jax"
"""What `--model` calls these models."""


_OLDEST = (0, 4, 13)
"""Older ones find no functions of other packages in task files."""


@functools.cache
def register() -> type:
    """Registers the model "sparse_jax", once.

    Returns:
      Its class, a `lm_eval.api.model.LM`.

    Raises:
      InputError: lm-eval is not installed, or too old.
    """
    _check_version()
    # lm-eval forks processes to estimate errors, which may hang beside JAX's threads.
    os.environ.setdefault("DISABLE_MULTIPROC", "1")
    base = importlib.import_module("lm_eval.api.model").LM
    adapter = type("SparseJax", (Adapter, base), {"__doc__": Adapter.__doc__})
    return importlib.import_module("lm_eval.api.registry").register_model(NAME)(adapter)


def _check_version() -> None:
    oldest = ".".join(map(str, _OLDEST))
    try:
        found = importlib.metadata.version("lm_eval")
    except importlib.metadata.PackageNotFoundError:
        found = "no lm-eval"
    numbers = tuple(int(part) for part in re.findall(r"\d+", found)[:3])
    if numbers < _OLDEST:
        raise InputError(
            f"lm-eval {oldest} or newer is needed, found {found}: "
            "pip install 'sparse_jax[lm_eval]'"
        )
