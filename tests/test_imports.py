"""The house's rules, read from the source: who imports whom, and how long is long."""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = ROOT / "sparse_jax"

LEVELS = (
    {"types", "tree", "schema", "mesh", "files", "host", "distributed"},
    {"kernels"},
    {"ops"},
    {"sparsity", "quant", "solvers"},
    {"models"},
    {"data", "io"},
    {"prune", "contextual", "train", "dataflow"},
    {"infer", "evaluate", "report"},
    {"recipe"},
    {"plan"},
)
"""A part imports parts of the levels above it in this list, never of those below."""

SIBLINGS = {
    ("tree", "types"),
    ("schema", "types"),
    ("mesh", "types"),
    ("files", "types"),
    ("distributed", "types"),
    ("mesh", "tree"),
    ("solvers", "sparsity"),
    ("sparsity", "quant"),
    ("io", "data"),
    ("evaluate", "infer"),
}
"""(importer, imported) pairs inside one level that are allowed."""

FOREIGN = {
    "absl": {"launch", "configs", "benchmarks"},
    "ml_collections": {"launch", "configs", "benchmarks"},
    "configs": {"launch", "configs", "benchmarks"},
    "torch": {"tests/parity", "benchmarks"},
    "llmcompressor": {"benchmarks"},
    "lm_eval": {"sparse_jax/evaluate/lm_eval", "benchmarks", "tests"},
    "datasets": {"sparse_jax/evaluate/lm_eval", "tests/parity"},
    "transformers": {"tests/parity", "benchmarks"},
}
"""Where a module may be imported; the tests may import it too where they test it."""

SOURCES = sorted(PACKAGE.rglob("*.py"))
FOLDERS = ("sparse_jax", "launch", "configs", "benchmarks", "tests")
ALL = [path for name in FOLDERS for path in sorted((ROOT / name).rglob("*.py"))]
MODULES = {".".join(p.relative_to(ROOT).with_suffix("").parts) for p in SOURCES}


def label(path):
    return path.relative_to(ROOT).as_posix()


def imported(path):
    """Absolute names of the modules that a file imports anywhere in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{label(path)}: relative import; write it in full"
            # `from a import b` may import the module a.b.
            names.add(node.module)
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def part(name):
    """`sparse_jax.io.names` -> `io`; None outside the package."""
    pieces = name.split(".")
    return pieces[1] if pieces[0] == "sparse_jax" and len(pieces) > 1 else None


def level(name):
    found = [i for i, names in enumerate(LEVELS) if name in names]
    assert found, f"{name!r} is not in LEVELS; say in tests/test_imports.py where it is"
    return found[0]


def allowed(importer, target):
    if importer == target or (importer, target) in SIBLINGS:
        return True
    return level(target) < level(importer)


@pytest.mark.parametrize("path", SOURCES, ids=label)
def test_imports_go_down(path):
    importer = path.relative_to(PACKAGE).with_suffix("").parts[0]
    if importer == "__init__":
        assert not any(map(part, imported(path))), (
            "sparse_jax imports no part of itself"
        )
        return
    known = {module.split(".")[1] for module in MODULES if "." in module}
    targets = {part(name) for name in imported(path)} & known
    wrong = sorted(t for t in targets if not allowed(importer, t))
    assert not wrong, f"{label(path)}: {importer} must not import {wrong}"


@pytest.mark.parametrize("path", ALL, ids=label)
def test_foreign_modules_stay_in_their_place(path):
    place = label(path)
    for module in {name.split(".")[0] for name in imported(path)} & FOREIGN.keys():
        homes = FOREIGN[module]
        if module in ("absl", "ml_collections", "configs"):
            homes = {*homes, "tests"}
        assert place.startswith(tuple(f"{home}/" for home in homes)), (
            f"{place} imports {module}, which only {sorted(homes)} may"
        )


@pytest.mark.parametrize("path", ALL, ids=label)
def test_no_future_annotations(path):
    # Annotations as strings would hide shapes from jaxtyping.
    assert "__future__" not in imported(path)


@pytest.mark.parametrize("path", SOURCES, ids=label)
def test_files_and_functions_are_short(path):
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 300, f"{label(path)} is over 300 lines"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = node.end_lineno - node.lineno + 1
            assert lines <= 60, f"{label(path)}: {node.name} has {lines} lines"


@pytest.mark.parametrize("path", sorted((ROOT / "launch").glob("*.py")), ids=label)
def test_launchers_are_thin(path):
    lines = len(path.read_text(encoding="utf-8").splitlines())
    # cli.py is what the launchers share.
    assert lines <= (140 if path.name == "cli.py" else 80), f"{label(path)}: {lines}"


@pytest.mark.parametrize(
    ("importer", "target", "right"),
    [
        ("train", "models", True),
        ("io", "data", True),
        ("data", "io", False),
        ("models", "train", False),
        ("prune", "train", False),
        ("types", "tree", False),
        ("recipe", "report", True),
    ],
)
def test_the_rule_itself(importer, target, right):
    assert allowed(importer, target) == right
