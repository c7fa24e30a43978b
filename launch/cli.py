"""What every launcher shares: flags to a frozen config, and errors as one sentence."""

import logging
import pathlib
import re
import sys
from collections.abc import Callable
from typing import TypeVar

from absl import app, flags
from absl import logging as absl_logging

from sparse_jax import schema
from sparse_jax.types import InputError

T = TypeVar("T")

# Config files import `configs.common`, wherever the launcher is started from.
sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

_DISK = re.compile(
    r"[^\n]*(No space left on device|Read-only file system|Permission denied)[^\n]*"
)


def run(main: Callable[[], None]) -> None:
    """Parses flags and runs `main`; bad input ends in one sentence and exit code 2."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    absl_logging.set_verbosity(absl_logging.WARNING)  # orbax reports every file
    logging.getLogger("jax").setLevel(logging.WARNING)  # and jax every backend it lacks
    app.run(lambda _: _guarded(main), flags_parser=_parse)


def _guarded(main: Callable[[], None]) -> None:
    try:
        main()
    except InputError as error:
        _stop(str(error))
    except KeyboardInterrupt:
        _stop("interrupted; run the same command again to continue")
    except Exception as error:
        if isinstance(error, OSError) and error.filename and _DISK.search(str(error)):
            _stop(f"{error.filename}: {error.strerror}; put it right and run again")
        if found := _DISK.search(str(error)):
            _stop(f"{found[0].strip()}; put it right and run again")
        raise


def _parse(arguments: list[str]) -> list[str]:
    try:
        rest = flags.FLAGS(arguments)
    except flags.Error as error:
        _stop(str(error))
    except AttributeError as error:
        # ml_collections' error for a field that the config does not have.
        _stop(_unknown_field(arguments, str(error)))
    except FileNotFoundError as error:
        _stop(f"{error.filename}: there is no such config file")
    except InputError as error:
        _stop(str(error))
    if len(rest) > 1:
        _stop(f"{rest[1]!r} is not a flag; flags look like --config=FILE")
    return rest


def _unknown_field(arguments: list[str], message: str) -> str:
    names = re.findall(r"'([\w.]+)'", message.replace("\\'", "'"))
    near = re.search(r'Did you mean "(\w+)"', message)
    wrong = names[0] if names else "a field"
    flag = next((a for a in arguments if re.search(rf"\.{wrong}\b", a)), wrong)
    field = flag.lstrip("-").split("=")[0]
    hint = f"; did you mean {near[1]}?" if near else ""
    return f"{field} is not a field of the config: there is no {wrong!r}{hint}"


def _stop(message: str) -> None:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)


def build(cls: type[T], config) -> T:
    """The frozen dataclass that a ConfigDict describes."""
    return schema.build(cls, config.to_dict())
