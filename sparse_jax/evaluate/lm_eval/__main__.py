"""lm-eval's command line, which knows this project's models and tasks."""

import argparse
import difflib
import importlib
import sys

from sparse_jax.evaluate.lm_eval.setup import LOCAL_TASKS, register
from sparse_jax.types import InputError

_MISSING = "Tasks not found: "


def main() -> None:
    """Runs lm-eval with its arguments from the command line."""
    try:
        register()
        importlib.import_module("lm_eval.utils").setup_logging()
        command_line = importlib.import_module("lm_eval._cli").HarnessCLI()
        arguments = command_line.parse_args()
        arguments.include_path = [LOCAL_TASKS, *own_tasks(arguments)]
        command_line.execute(arguments)
    except InputError as error:
        _stop(str(error))
    except ValueError as error:
        if not str(error).startswith(_MISSING):
            raise
        _stop(unknown_task(str(error).removeprefix(_MISSING)))


def own_tasks(arguments: argparse.Namespace) -> list[str]:
    """The folder of tasks that the user names, which replace others of the same name.

    Args:
      arguments: of lm-eval's command line.
    """
    folder = getattr(arguments, "include_path", None)
    if folder is None and getattr(arguments, "config", None):
        config = importlib.import_module(
            "lm_eval.config.evaluate_config"
        ).EvaluatorConfig
        folder = config.load_yaml_config(arguments.config).get("include_path")
    return [folder] if folder else []


def unknown_task(names: str) -> str:
    """The sentence for tasks that lm-eval does not know.

    Args:
      names: of the tasks, with commas between them.
    """
    local = [f"local_{file.stem}" for file in sorted(LOCAL_TASKS.glob("*.yaml"))]
    near = difflib.get_close_matches(names.split(",")[0], local, n=1, cutoff=0.4)
    hint = f"did you mean {near[0]}?" if near else f"local ones: {', '.join(local)};"
    return f"--tasks: lm-eval has no task {names}; {hint} `ls tasks` lists all"


def _stop(sentence: str) -> None:
    print(f"error: {sentence}", file=sys.stderr, flush=True)
    sys.exit(2)


if __name__ == "__main__":
    main()
