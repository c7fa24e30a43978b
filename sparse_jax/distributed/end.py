"""How a process of several ends when another one does not go on.

JAX's coordination service notices a process that has died: at once when it is process
0, else when its heartbeats have been missing for a while. Its client then ends this
process by `abort()`, in a thread of its own, whatever Python or a collective waits for.
It cannot call Python instead, so the abort itself is caught here: it becomes one
sentence and an exit code.
"""

import ctypes
import os
import re
import signal
from typing import Any

from sparse_jax.types import InputError

PEER_LOST = 76
"""Exit code of a process that stopped because another one has (EX_PROTOCOL)."""


class PeersMissing(InputError):
    """Not all processes came; their machines may have died, and start again."""


_PEER_ERRORS = re.compile(
    "gloo|nccl|coordination service|CoordinationService|socket closed|"
    "connection (reset|closed|refused)|heartbeat",
    re.IGNORECASE,
)


class _LastWords:
    """What an abort says, and its exit code, at this stage of the process."""

    sentence = ""
    code = PEER_LOST
    handler: Any = None  # ctypes frees a handler that nothing refers to


def catch_aborts(sentence: str, code: int = PEER_LOST) -> None:
    """From now on abort() prints a sentence and leaves with an exit code.

    Args:
      sentence: empty prints nothing.
      code: of the process.
    """
    _LastWords.sentence, _LastWords.code = sentence, code
    if _LastWords.handler is None:
        kind = ctypes.CFUNCTYPE(None, ctypes.c_int)
        _LastWords.handler = kind(_leave)
        # Python's own signal handlers run in the main thread only, which waits.
        libc = ctypes.CDLL(None)
        libc.signal.argtypes, libc.signal.restype = (
            (ctypes.c_int, kind),
            ctypes.c_void_p,
        )
        libc.signal(signal.SIGABRT, _LastWords.handler)


def _leave(_: int) -> None:
    if _LastWords.sentence:
        os.write(2, f"error: {_LastWords.sentence}\n".encode())
    os._exit(_LastWords.code)


def ending(code: int) -> None:
    """Notes the exit code of a process that is about to end by itself.

    JAX lets a process end only together with the others; when they do not end in time
    it aborts all of them, and this one keeps its exit code.
    """
    if _LastWords.handler is not None:
        catch_aborts("", code)


def is_peer_error(error: BaseException | None) -> bool:
    """Whether an exception, or its cause, says that another process has gone away.

    Example:
      >>> is_peer_error(ValueError("Gloo AllGather failed: Connection closed by peer"))
      False
    """
    if _LastWords.handler is None:
        return False  # this process is alone
    causes: list[BaseException] = []
    while error is not None and error not in causes:
        causes.append(error)
        error = error.__cause__ or error.__context__
    return any(_PEER_ERRORS.search(str(cause)) for cause in causes)
