"""Whether model-written programs pass their tests: HumanEval's and MBPP's.

Each program runs in a process of its own that is locked in first, by layers none of
which needs privileges: see `docs/sandbox.md` for what they keep a program from.

    programs = [humaneval_program(record, completion) for ...]
    passed = [outcome.passed for outcome in check_programs(programs)]
"""

import logging
import os
import queue
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from sparse_jax.evaluate.sandbox.limits import Limits, Outcome
from sparse_jax.types import InputError

__all__ = [
    "Limits",
    "Outcome",
    "check_programs",
    "humaneval_program",
    "mbpp_program",
    "missing_layers",
    "require_layers",
]

_LOG = logging.getLogger(__name__)


def humaneval_program(
    record: Mapping[str, Any], completion: str, *, where: str = "record"
) -> str:
    """The program that decides one HumanEval problem.

    prompt + completion, the problem's `check`, and a call of it.

    Args:
      record: one problem, with the strings prompt, test and entry_point.
      completion: what follows the prompt, already cut where generation should stop.
      where: "file:line" of the record, for the error.

    Returns:
      Python source that raises where a test fails.

    Raises:
      InputError: a field is missing or no string.

    Example:
      >>> record = {"prompt": "def f():\\n", "entry_point": "f"}
      >>> record["test"] = "def check(f):\\n    assert f() == 2\\n"
      >>> print(humaneval_program(record, "    return 2\\n"))
      def f():
          return 2
      <BLANKLINE>
      def check(f):
          assert f() == 2
      <BLANKLINE>
      check(f)
    """
    prompt, test = (_text(record, name, where) for name in ("prompt", "test"))
    entry_point = _text(record, "entry_point", where)
    return f"{prompt}{completion}\n{test}\ncheck({entry_point})"


def mbpp_program(record: Mapping[str, Any], code: str, *, where: str = "record") -> str:
    """The program that decides one MBPP problem.

    The code, what the tests need, the tests.

    Args:
      record: one problem of either public file: the full set's has test_list and
        test_setup_code, which may use the code; the sanitized set's has test_list and
        test_imports.
      code: the whole solution.
      where: "file:line" of the record, for the error.

    Returns:
      Python source that raises where a test fails.

    Raises:
      InputError: no list of tests, or one that holds something else than strings.

    Example:
      >>> print(mbpp_program({"test_list": ["assert f() == 2"]}, "f = lambda: 2"))
      f = lambda: 2
      assert f() == 2
    """
    imports = _texts(record, "test_imports", where) if "test_imports" in record else []
    tests = _texts(record, "test_list", where)
    if not tests:
        raise InputError(f"{where}: field 'test_list' is empty; expected assertions")
    setup = (
        _text(record, "test_setup_code", where) if "test_setup_code" in record else ""
    )
    return "\n".join([*imports, code, *([setup] if setup else []), *tests])


def missing_layers(limits: Limits = Limits()) -> dict[str, str]:
    """Which layers of the sandbox this machine lacks, found by trying them.

    Args:
      limits: what a program may use.

    Returns:
      Name of each layer that cannot be put up, and why; empty if all can.

    Raises:
      InputError: this is not Linux, or the sandbox's process does not start at all.
    """
    if sys.platform != "linux":
        raise InputError(
            f"model-written programs run on Linux only, this is {sys.platform}: "
            "evaluate this task on a Linux machine"
        )
    # Here, since other platforms lack the modules that these import.
    from sparse_jax.evaluate.sandbox import policy, process

    known = policy.known_missing()
    tried = policy.make(limits, without=frozenset(known))
    return known | process.missing(tried, user=policy.users(1)[0])


def require_layers(
    *,
    unsafe: bool = False,
    limits: Limits = Limits(),
    probe: Callable[[Limits], Mapping[str, str]] = missing_layers,
) -> tuple[str, ...]:
    """Refuse a machine on which programs could not be locked in wholly.

    Call it before hours of generation, too.

    Args:
      unsafe: go on without the layers that are missing, with a warning in the log.
      limits: what a program may use.
      probe: finds the missing layers and why they are missing.

    Returns:
      The layers to do without; empty unless `unsafe`.

    Raises:
      InputError: a layer is missing and not `unsafe`, or this is not Linux.
    """
    missing = probe(limits)
    if not missing:
        return ()
    names = "; ".join(f"{name} ({why})" for name, why in missing.items())
    if not unsafe:
        raise InputError(
            f"model-written programs are not run, since this machine lacks {names}: "
            "use a machine that has it, or a container or virtual machine that you can "
            "afford to lose and --unsafe_code"
        )
    _LOG.warning("model-written programs run without protection by %s", names)
    return tuple(missing)


def check_programs(
    programs: Sequence[str],
    *,
    limits: Limits = Limits(),
    unsafe: bool = False,
    workers: int | None = None,
    probe: Callable[[Limits], Mapping[str, str]] = missing_layers,
) -> list[Outcome]:
    """Run programs that contain their tests, each locked in a process of its own.

    Args:
      programs: Python sources; one passes if its last statement returns.
      limits: what each may use.
      unsafe: go on without the layers that this machine lacks, with a warning.
      workers: how many run at a time; None is one for each usable core.
      probe: finds the missing layers and why they are missing.

    Returns:
      One outcome for each program, in their order.

    Raises:
      InputError: a layer is missing and not `unsafe`, or this is not Linux.

    Example:
      >>> programs = ["assert 1 + 1 == 2", "import os; os._exit(0)"]
      >>> good, bad = check_programs(programs)  # doctest: +SKIP
      >>> good.passed, bad.passed, bad.reason  # doctest: +SKIP
      (True, False, 'exit status 0 before the tests ended')
    """
    if workers is not None and workers < 1:
        raise InputError(f"workers must be at least 1, found {workers}")
    if not programs:
        return []
    without = frozenset(require_layers(unsafe=unsafe, limits=limits, probe=probe))
    from sparse_jax.evaluate.sandbox import policy, process

    workers = min(workers or len(os.sched_getaffinity(0)), len(programs))
    rules = policy.make(limits, without=without)
    users: queue.SimpleQueue[int | None] = queue.SimpleQueue()
    for user in policy.users(workers):
        users.put(user)

    def run(program: str) -> Outcome:
        user = users.get()
        try:
            return process.run(program, rules, user=user)
        finally:
            users.put(user)

    with ThreadPoolExecutor(workers) as pool:
        try:
            return list(pool.map(run, programs))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _text(record: Mapping[str, Any], name: str, where: str) -> str:
    value = record.get(name)
    if not isinstance(value, str):
        found = f"{type(value).__name__}" if name in record else "nothing"
        raise InputError(
            f"{where}: field {name!r} must be a string, found {found}: give the file "
            "as its data set publishes it"
        )
    return value


def _texts(record: Mapping[str, Any], name: str, where: str) -> list[str]:
    value = record.get(name)
    # Parquet's lists arrive as arrays.
    value = value.tolist() if hasattr(value, "tolist") else value
    if not isinstance(value, list | tuple) or not all(
        isinstance(t, str) for t in value
    ):
        found = f"{type(value).__name__}" if name in record else "nothing"
        raise InputError(
            f"{where}: field {name!r} must be a list of strings, found {found}: give "
            "the file as its data set publishes it"
        )
    return list(value)
