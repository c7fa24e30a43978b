"""What every launcher shares: flags to a frozen config, and errors as one sentence."""

import logging
import pathlib
import re
import sys
from collections.abc import Callable
from typing import TypeVar

import ending
from absl import app, flags
from absl import logging as absl_logging

from sparse_jax import host, recipe, schema
from sparse_jax.types import InputError

T = TypeVar("T")

# Config files import `configs.common`, wherever the launcher is started from.
sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))


def run(main: Callable[[], None], *, keep_memory: bool = True) -> None:
    """Parses flags and runs `main`; failures end as in `ending`.

    Args:
      main: takes its arguments from the flags.
      keep_memory: choose speed over memory, see `host`; False leaves it to `main`.
    """
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    absl_logging.set_verbosity(absl_logging.ERROR)  # orbax reports every file
    # What orbax logs with a traceback it raises as well, and that is handled below.
    # So does asyncio with what orbax's other writers meet then.
    for logger in (absl_logging.get_absl_logger(), logging.getLogger("asyncio")):
        logger.addFilter(lambda record: not record.exc_info)
    sys.unraisablehook = ending.unraisable
    logging.getLogger("jax").setLevel(logging.WARNING)  # and jax every backend it lacks
    if keep_memory:
        host.keep_freed_memory()
    app.run(lambda _: ending.guarded(main), flags_parser=_parse)


def _parse(arguments: list[str]) -> list[str]:
    try:
        rest = flags.FLAGS(arguments)
    except flags.Error as error:
        ending.stop(_flag_error(error))
    except (AttributeError, KeyError) as error:
        # ml_collections' errors for a field that the config does not have.
        if sentence := _unknown_field(arguments, str(error)):
            ending.stop(sentence)
        raise  # an error inside the config file
    except OSError as error:
        ending.stop(_missing_config(error))
    except InputError as error:
        ending.stop(str(error))
    except ValueError as error:
        if sentence := _none_field(str(error)):
            ending.stop(sentence)
        raise
    if len(rest) > 1:
        ending.stop(f"{rest[1]!r} is not a flag; flags look like --config=FILE")
    return rest


def _unknown_field(arguments: list[str], message: str) -> str | None:
    names = re.findall(r"'([\w.]+)'", message.replace("\\'", "'"))
    near = re.search(r'Did you mean "(\w+)"', message)
    wrong = names[0] if names else ""
    flag = next((a for a in arguments if re.search(rf"\.{wrong}[.=]", a)), None)
    if not wrong or flag is None:
        return None
    field = flag.lstrip("-").split("=")[0]
    hint = f"; did you mean {near[1]}?" if near else ""
    return f"{field} is not a field of the config: there is no {wrong!r}{hint}"


def _none_field(message: str) -> str | None:
    """ml_collections' error for a field of something that the config leaves out."""
    found = re.search(
        r'Override (\S+) can not be applied because field "(\w+)"', message
    )
    if found is None:
        return None
    return (
        f"--config.{found[1]}: {found[2]} is None in this config, and has no fields to "
        "set; choose a variant that has it"
    )


def _flag_error(error: BaseException | None) -> str:
    """absl's message; of an InputError that a config file raised, that alone."""
    message, cause = str(error), error
    while cause is not None:
        if isinstance(cause, InputError):
            message = str(cause)  # the last is the first raised, the bare sentence
        cause = cause.__cause__ or cause.__context__
    return message


def _missing_config(error: OSError) -> str:
    """ml_collections lists every place it has tried over many lines."""
    found = re.search(r"No such file or directory: '([^']+)'", str(error))
    return f"{found[1]}: there is no such config file" if found else str(error)


def build_recipe(config) -> recipe.Recipe:
    """The recipe that a ConfigDict describes, or stands for (see `recipe.JOBS`)."""
    values = _plain(config)
    cls = recipe.JOBS.get(values.get("kind"), recipe.Recipe)
    job = schema.build(cls, values)
    return job if isinstance(job, recipe.Recipe) else job.recipe()


def build(cls: type[T], config) -> T:
    """The frozen dataclass that a ConfigDict describes."""
    return schema.build(cls, _plain(config))


def _plain(config) -> dict:
    try:
        return config.to_dict()
    except OSError as error:  # a config file that is not there shows only when used
        raise InputError(_missing_config(error)) from error
