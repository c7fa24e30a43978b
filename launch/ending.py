"""How a launcher ends: an exception becomes one sentence and an exit code.

0   done                     75   stopped by SIGTERM; the same command goes on
1   a bug, with a traceback  76   another process of the run has died, or has not come
2   bad input
"""

import os
import re
import sys
from collections.abc import Callable
from typing import NoReturn

from sparse_jax import distributed
from sparse_jax.types import InputError, Interrupted

_DISK = re.compile(
    "No space left on device|Read-only file system|Permission denied"
    "|File too large|Disk quota exceeded"
)
_AGAIN = "run the same command again to continue"


def guarded(main: Callable[[], None]) -> None:
    """Calls `main`; what a user can put right ends in a sentence, not a traceback."""
    try:
        main()
        distributed.ending(0)
    except distributed.PeersMissing as error:
        stop(str(error), distributed.PEER_LOST)
    except InputError as error:
        stop(str(error))
    except Interrupted as error:
        stop(str(error), 75, "stopped")
    except KeyboardInterrupt:
        stop(f"interrupted; {_AGAIN}")
    except Exception as error:
        if distributed.is_peer_error(error):
            _leave(str(error))
        if found := _DISK.search(str(error)):
            stop(
                f"{_path_in(error)}: cannot be written ({found[0]}); put it right and "
                f"{_AGAIN}"
            )
        distributed.ending(1)
        raise


def stop(message: str, code: int = 2, kind: str = "error") -> NoReturn:
    """Prints one sentence and exits."""
    print(f"{kind}: {message}", file=sys.stderr, flush=True)
    distributed.ending(code)
    sys.exit(code)


def unraisable(found) -> None:
    """Hides what orbax's writers that outlive a failed save meet; that is reported."""
    if str(found.exc_value) != "Event loop is closed":
        sys.__unraisablehook__(found)


def _leave(message: str) -> NoReturn:
    """Ends at once: an orderly exit would wait for the process that has gone."""
    found = message.splitlines()[0][:300]
    print(
        f"error: another process of this run has stopped ({found}); {_AGAIN}",
        file=sys.stderr,
        flush=True,
    )
    sys.stdout.flush()
    os._exit(distributed.PEER_LOST)


def _path_in(error: Exception) -> str:
    """The file that a system's error, or a sentence of orbax, is about."""
    if isinstance(error, OSError) and error.filename:
        return str(error.filename)
    quoted = re.search(r"""["'](/[^"']+)["']""", str(error))
    return quoted[1].partition(".orbax-checkpoint-tmp")[0] if quoted else "a file"
