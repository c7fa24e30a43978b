"""How often functions have been compiled in this process, as JAX reports it."""

import collections
from typing import Any

import jax

_EVENT = "/jax/core/compile/backend_compile_duration"

_counts: collections.Counter[str] = collections.Counter()


def compilations(name: str) -> int:
    """Compilations of the jitted functions of a name.

    JAX's cache of calls counts calls, too, whose arguments only come another way.

    Example:
      >>> @jax.jit
      ... def twice(x):
      ...     return 2 * x
      >>> _ = twice(1.0), twice(2.0)
      >>> compilations("twice")
      1
    """
    return _counts[f"jit({name})"]


def _note(event: str, duration_secs: float, **facts: Any) -> None:
    del duration_secs
    if event == _EVENT:
        _counts[str(facts.get("fun_name"))] += 1


jax.monitoring.register_event_duration_secs_listener(_note)
