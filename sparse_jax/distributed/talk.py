"""Plain data from process to process, through JAX's coordination service.

Not through the devices: nothing is compiled, no collective runs into its time-out while
one process works for hours, and a process that waits still hears its signals. When a
process dies, JAX ends those that wait for it, see `end`.
"""

import itertools
import json
from collections.abc import Callable
from typing import Any, TypeVar

import jax
from jax._src import distributed as jax_distributed

from sparse_jax.types import InputError

T = TypeVar("T")

_POLL = 2_000  # milliseconds; between two polls Python's signal handlers run
_FOLDER = "sparse_jax"
_numbers = itertools.count()
_answered: list[str] = []  # the lead's answers that are still kept


def is_lead() -> bool:
    """Whether this process writes the files and shows the progress."""
    return jax.process_index() == 0


def gather(value: Any) -> list[Any]:
    """Every process's value, by process index, on all of them.

    Args:
      value: plain JSON data.

    Example:
      >>> gather({"free": 3})
      [{'free': 3}]
    """
    if jax.process_count() == 1:
        return [value]
    number = next(_numbers)
    if not is_lead():
        _set(number, str(jax.process_index()), value)
        return _get(number, "all")
    others = [_get(number, str(process)) for process in range(1, jax.process_count())]
    _set(number, "all", [value, *others])
    # All have come here, so none will read the answers to earlier calls again.
    while _answered:
        _client().key_value_delete(_answered.pop())
    _answered.append(f"{_FOLDER}/{number}")
    return [value, *others]


def barrier(name: str) -> None:
    """Waits until all processes are here.

    Raises:
      AssertionError: the processes came with different names.
    """
    found = gather(name)
    if len({*found}) > 1:
        raise AssertionError(f"processes wait at different places: {found}")


def on_lead(function: Callable[[], T]) -> T:
    """Calls a function on the lead alone and gives its result to all processes.

    Args:
      function: its result is plain JSON data; None is fine.

    Raises:
      InputError: on all processes, when the function raises one on the lead.
      RuntimeError: on the others, when it raises anything else there.

    Example:
      >>> on_lead(lambda: {"steps": [10, 20]})
      {'steps': [10, 20]}
    """
    if jax.process_count() == 1:
        return function()
    number = next(_numbers)
    if not is_lead():
        answer = _get(number, "all")
        _raise_of(0, answer)
        return answer["value"]
    _answered.append(f"{_FOLDER}/{number}")
    try:
        value = function()
    except Exception as error:
        _set(number, "all", _describe(error))
        raise
    _set(number, "all", {"value": value})
    return value


def everywhere(function: Callable[[], T]) -> T:
    """Calls a function on every process; what one of them raises, all raise.

    Args:
      function: works without the other processes.

    Raises:
      InputError: on all processes, when the function raises one on some.
      RuntimeError: on the others, when it raises anything else.

    Example:
      >>> everywhere(lambda: 3)
      3
    """
    if jax.process_count() == 1:
        return function()
    try:
        value = function()
    except Exception as error:
        gather(_describe(error))
        raise
    for process, answer in enumerate(gather({})):
        _raise_of(process, answer)
    return value


def check_same(value: Any, what: str) -> None:
    """Raises InputError on all processes unless all of them hold the same value.

    Args:
      value: plain JSON data.
      what: of what it is, for the message.
    """
    if jax.process_count() == 1:
        return
    leads = on_lead(lambda: value)
    found = gather(first_difference(leads, json.loads(json.dumps(value)), what))
    for process, difference in enumerate(found):
        if difference is not None:
            where, first, other = difference
            raise InputError(
                f"{where} is {first!r} on process 0 and {other!r} on process "
                f"{process}; start all processes with the same command and versions"
            )


def first_difference(old: Any, new: Any, where: str) -> tuple[str, Any, Any] | None:
    """The first place, by sorted keys, in which two pieces of JSON data differ.

    Returns:
      (its dotted name, the old value there, the new one), or None when they are equal.

    Example:
      >>> first_difference({"a": {"b": 1}}, {"a": {"b": 2}}, "config")
      ('config.a.b', 1, 2)
    """
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted({*old, *new}):
            found = first_difference(old.get(key), new.get(key), f"{where}.{key}")
            if found:
                return found
        return None
    return None if old == new else (where, old, new)


def _describe(error: Exception) -> dict[str, str]:
    """An exception as JSON, for `_raise_of`."""
    kind = "wrong" if isinstance(error, InputError) else "failed"
    return {kind: str(error) or type(error).__name__}


def _raise_of(process: int, answer: dict[str, Any]) -> None:
    """Raises what `_describe` has kept of another process's exception."""
    if "wrong" in answer:
        raise InputError(answer["wrong"])
    if "failed" in answer:
        raise RuntimeError(f"process {process} stopped: {answer['failed']}")


def _client() -> Any:
    """JAX's client of the coordination service; what checkpoint libraries use, too."""
    return jax_distributed.global_state.client


def _set(number: int, name: str, value: Any) -> None:
    _client().key_value_set(f"{_FOLDER}/{number}/{name}", json.dumps(value))


def _get(number: int, name: str) -> Any:
    """Waits for a value; signal handlers run meanwhile."""
    while True:
        try:
            key = f"{_FOLDER}/{number}/{name}"
            return json.loads(_client().blocking_key_value_get(key, _POLL))
        except jax.errors.JaxRuntimeError as error:
            if "DEADLINE_EXCEEDED" not in str(error):
                raise
