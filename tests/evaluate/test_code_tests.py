"""Which programs pass, which machines are refused, and the two data sets' programs."""

import gzip
import json
import logging
import sys

import pytest

from sparse_jax.evaluate.code_tests import (
    Limits,
    check_programs,
    humaneval_program,
    mbpp_program,
    missing_layers,
    require_layers,
)
from sparse_jax.evaluate.sandbox import policy, process
from sparse_jax.types import InputError

sandboxed = pytest.mark.skipif(
    sys.platform != "linux" or bool(missing_layers()),
    reason="this machine lacks a layer of the sandbox",
)

PROBLEM = {
    "prompt": "def double(x):\n",
    "entry_point": "double",
    "test": "def check(f):\n    assert f(2) == 4\n",
}


# A pass that no test gave: each ends, or speaks, before its assertion is reached.
FAKES = {
    "exit": ("import sys; sys.exit(0)", "SystemExit before the tests ended"),
    "quit": ("raise SystemExit", "SystemExit before the tests ended"),
    "exit at once": ("import os; os._exit(0)", "exit status 0 before the tests ended"),
    "exit in C": (
        "import ctypes; ctypes.CDLL(None).exit(0)",
        "exit status 0 before the tests ended",
    ),
    "interrupt": ("raise KeyboardInterrupt", "KeyboardInterrupt"),
    "speak everywhere": (
        "import os\nfor fd in range(3, 64):\n"
        " try: os.write(fd, b'passed\\nready\\n')\n except OSError: pass",
        "it wrote into the report",
    ),
    "speak and exit": (
        "import os\nfor fd in range(3, 64):\n"
        " try: os.write(fd, b'token')\n except OSError: pass\nos._exit(0)",
        "it wrote into the report",
    ),
    "flood": (
        "import os\nwhile True:\n for fd in range(3, 64):\n"
        "  try: os.write(fd, bytes(4096))\n  except OSError: pass",
        "killed: it wrote into the report",
    ),
    "close everything": (
        "import os; os.closerange(0, 64)",
        "exit status 1",
    ),
    "close and stay": (
        "import os, time; os.closerange(0, 64); time.sleep(60)",
        "killed: it closed its report",
    ),
    "replace exit": ("import os; os._exit = os.abort = print", "AssertionError"),
    "at exit": ("import atexit, os; atexit.register(os._exit, 0)", "AssertionError"),
    "replace write": ("import os; os.write = lambda *a: 0", "AssertionError"),
    "read the job": ("import sys; print(sys.stdin.buffer.read())", "AssertionError"),
    "exception that exits": (
        "import os\nclass E(Exception):\n def __str__(self): os._exit(0)\nraise E",
        "exit status 0 before the tests ended",
    ),
    "exception that raises": (
        "class E(Exception):\n def __str__(self): raise self\nraise E",
        "exit status 1 before the tests ended",
    ),
    "exception in many lines": (
        "raise ValueError('a\\nb' * 999)",
        "ValueError: a ba b",
    ),
    "syntax": ("def", "SyntaxError"),
    "null byte": ("x = 1\0", ("SyntaxError", "ValueError")),
    "surrogate": ("x = '\ud800'", "UnicodeEncodeError"),
    "nesting": ("(" * 10000, "SyntaxError"),
}


@sandboxed
@pytest.mark.parametrize(("program", "reason"), FAKES.values(), ids=FAKES)
def test_a_pass_cannot_be_had_without_the_tests(program, reason):
    # The layers were found once for all tests, above.
    (outcome,) = check_programs([program + "\nassert False"], probe=lambda limits: {})
    assert not outcome.passed
    assert outcome.reason.startswith(reason), outcome.reason
    assert "\n" not in outcome.reason and len(outcome.reason) < 400


@sandboxed
def test_outcomes_keep_the_order_of_programs():
    programs = [
        f"import time\ntime.sleep({0.1 * (i % 2)})\nassert {i} % 3" for i in range(8)
    ]
    outcomes = check_programs(programs, workers=3)
    assert [o.passed for o in outcomes] == [bool(i % 3) for i in range(8)]
    assert all(0 < o.seconds < 15 for o in outcomes)
    assert {o.reason for o in outcomes} == {"passed", "AssertionError"}


def test_no_programs_need_no_sandbox():
    assert check_programs([], probe=lambda limits: pytest.fail("probed")) == []


def test_workers_are_checked():
    with pytest.raises(InputError, match="workers must be at least 1"):
        check_programs(["pass"], workers=0)


@pytest.mark.parametrize("layer", policy.LAYERS)
def test_a_missing_layer_is_refused_by_name(layer):
    with pytest.raises(InputError, match=rf"lacks {layer} \(no such thing\): use"):
        check_programs(["pass"], probe=lambda limits: {layer: "no such thing"})


@sandboxed
@pytest.mark.parametrize(
    "layers",
    [
        ("resource limits",),
        ("Landlock",),
        ("user",),
        ("seccomp",),
        # The kernel takes a filter only from who has given up new privileges.
        ("no_new_privs", "seccomp", "Landlock"),
        policy.LAYERS,
    ],
    ids=" ".join,
)
def test_unsafe_does_without_layers_and_says_so(layers, caplog):
    with caplog.at_level(logging.WARNING):
        good, bad = check_programs(
            ["pass", "assert False"],
            unsafe=True,
            probe=lambda limits: dict.fromkeys(layers, "no such thing"),
        )
    assert (good.passed, bad.passed) == (True, False)
    for layer in layers:
        assert f"{layer} (no such thing)" in caplog.text


@sandboxed
def test_a_layer_that_fails_is_found_by_trying():
    rules = policy.make(Limits())
    broken = policy.Policy(
        limits=rules.limits,
        layers=rules.layers,
        job=rules.job | {"filter": ((0xFFFF, 0, 0, 0),)},
    )
    user = policy.users(1)[0]
    assert process.missing(broken, user=user) == {
        "seccomp": "[Errno 22] Invalid argument"
    }
    with pytest.raises(InputError, match=r"not run, as its sandbox failed: .*seccomp"):
        process.run("pass", broken, user=user)


@sandboxed
def test_an_interpreter_that_does_not_start_is_named(monkeypatch):
    monkeypatch.setattr(process.sys, "executable", "/bin/false")
    with pytest.raises(InputError, match="check that '/bin/false' has ctypes"):
        missing_layers()


def test_other_platforms_are_refused(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    for unsafe in (False, True):
        with pytest.raises(InputError, match="on Linux only, this is darwin"):
            require_layers(unsafe=unsafe)


@sandboxed
def test_humaneval_program():
    good, bad, empty = check_programs(
        [
            humaneval_program(PROBLEM, completion)
            for completion in ("    return 2 * x", "    return x", "")
        ]
    )
    assert (good.passed, bad.reason) == (True, "AssertionError")
    assert empty.reason.startswith("IndentationError")


@sandboxed
def test_mbpp_programs_of_both_files():
    full = {
        "test_list": ["assert f(root) == 3"],
        "test_setup_code": "root = Node(3)",
        "challenge_test_list": ["assert False"],
    }
    sanitized = {"test_list": ["assert math.isclose(f(2), 2)"]}
    sanitized["test_imports"] = ["import math"]
    code = "class Node:\n  def __init__(self, v): self.v = v\nf = lambda n: n.v"
    programs = [mbpp_program(full, code), mbpp_program(sanitized, "f = abs")]
    assert [o.reason for o in check_programs(programs)] == ["passed", "passed"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompt": None}, "file.jsonl:3: field 'prompt' .* a string, found NoneType"),
        ({"entry_point": 3}, "field 'entry_point' must be a string, found int"),
        ({"test": ...}, "field 'test' must be a string, found nothing"),
    ],
)
def test_humaneval_fields(change, message):
    record = {k: v for k, v in (PROBLEM | change).items() if v is not ...}
    with pytest.raises(InputError, match=message):
        humaneval_program(record, "", where="file.jsonl:3")


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({}, "m:1: field 'test_list' must be a list of strings, found nothing"),
        ({"test_list": "assert f()"}, "a list of strings, found str"),
        ({"test_list": [1]}, "a list of strings, found list"),
        ({"test_list": []}, "'test_list' is empty"),
        ({"test_list": ["pass"], "test_setup_code": 1}, "'test_setup_code' must be"),
        ({"test_list": ["pass"], "test_imports": "re"}, "'test_imports' must be"),
    ],
)
def test_mbpp_fields(record, message):
    with pytest.raises(InputError, match=message):
        mbpp_program(record, "", where="m:1")


def humaneval(folder):
    with gzip.open(folder / "humaneval/HumanEval.jsonl.gz", "rt") as file:
        records = [json.loads(line) for line in file]
    return [humaneval_program(r, r["canonical_solution"]) for r in records]


def mbpp(folder):
    with open(folder / "mbpp/mbpp.jsonl", encoding="utf-8") as file:
        records = [json.loads(line) for line in file]
    return [mbpp_program(r, r["code"]) for r in records]


@sandboxed
def test_canonical_humaneval_solutions_pass(shared_data):
    outcomes = check_programs(humaneval(shared_data))
    assert len(outcomes) == 164
    assert [o for o in outcomes if not o.passed] == []


@sandboxed
def test_mbpp_reference_code_passes(shared_data):
    # Every twentieth; all of them are in the slow test.
    outcomes = check_programs(mbpp(shared_data)[::20])
    assert [o for o in outcomes if not o.passed] == []


@sandboxed
@pytest.mark.slow
def test_all_mbpp_reference_code_passes(shared_data):
    outcomes = check_programs(mbpp(shared_data))
    assert len(outcomes) == 974
    assert sum(o.passed for o in outcomes) >= 0.99 * 974
