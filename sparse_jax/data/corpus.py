"""The embedded corpus: Python code and English prose that every interpreter carries.

It needs no network and no data. `code` is the interpreter's own standard library;
`prose` is its documentation topics (`pydoc_data.topics`) and the docstrings of the
same files. Whole files and topics are held out by a hash of their name, a docstring
follows its file, and a held-out paragraph that any training document also contains
is removed, so nothing held out was seen in training.

The text depends on the Python version: `Corpus.fingerprint` names both.
"""

import ast
import dataclasses
import functools
import hashlib
import importlib
import inspect
import logging
import os
import platform
import re
import sysconfig
import warnings
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Literal

from sparse_jax.types import InputError

Domain = Literal["code", "prose"]
Split = Literal["train", "heldout"]

DOMAINS: tuple[Domain, ...] = ("code", "prose")

# Part of every cache key: raise it when a change here changes the documents.
_VERSION = 1
_HELDOUT_FRACTION = {"file": 0.08, "topic": 0.16}
_MIN_DOCSTRING = 80  # characters
_MIN_PARAGRAPH = 50  # characters, after whitespace is normalised

# Tests, packages that a user installed, and `topics.py`, whose text is `prose`.
_SKIPPED_DIRS = frozenset(
    "site-packages dist-packages test tests idle_test __pycache__ lib-dynload "
    "pydoc_data".split()
)
# What the build or the administrator of one machine writes, and tests.
_SKIPPED = re.compile(
    r"(_sysconfigdata.*|_sysconfig_vars.*|sitecustomize|usercustomize|test_.*)\.py"
)

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Corpus:
    """Documents by domain and split, and what identifies them.

    Attributes:
      documents: `documents[domain][split]` is a list of texts in a fixed order.
      fingerprint: JSON-able: `python` version, `sha256` over every document,
        `topics` ("present" or why not), `documents` and `bytes` per domain and split.
    """

    documents: Mapping[Domain, Mapping[Split, list[str]]]
    fingerprint: dict


def load_corpus() -> Corpus:
    """Reads the embedded corpus of the running interpreter; takes a few seconds.

    Raises:
      InputError: the interpreter has no standard library in source form.

    Example:
      >>> corpus = load_corpus()
      >>> sorted(corpus.documents), sorted(corpus.documents["code"])
      (['code', 'prose'], ['heldout', 'train'])
    """
    return _load_corpus(str(_stdlib()))


def corpus_identity() -> str:
    """The sha256 of everything `load_corpus` reads, without the work of parsing it.

    Raises:
      InputError: the interpreter has no standard library in source form.
    """
    digest = _Digest(f"{_VERSION} {platform.python_version()}")
    for name, text in _files(_stdlib()).items():
        digest.add(name, text)
    for name, text in _topics()[0].items():
        digest.add(name, text)
    return digest.hexdigest()


@functools.lru_cache(maxsize=1)
def _load_corpus(stdlib: str) -> Corpus:
    files = _files(Path(stdlib))
    topics, topics_state = _topics()
    pieces = _split_by_name(files, topics)
    documents = _without_duplicates(pieces.documents, pieces.short_docstrings)
    digest = _Digest("corpus")
    for domain, splits in documents.items():
        for split, texts in splits.items():
            for text in texts:
                digest.add(f"{domain}/{split}", text)
    fingerprint = {
        "python": platform.python_version(),
        "sha256": digest.hexdigest(),
        "topics": topics_state,
        "documents": _count(documents, lambda text: 1),
        "bytes": _count(documents, lambda text: len(text.encode())),
    }
    return Corpus(documents=documents, fingerprint=fingerprint)


def _count(documents, size) -> dict[str, dict[str, int]]:
    return {
        domain: {split: sum(map(size, texts)) for split, texts in splits.items()}
        for domain, splits in documents.items()
    }


class _Digest:
    """A sha256 over (name, text) pairs in which no two sequences collide."""

    def __init__(self, header: str) -> None:
        self._sha256 = hashlib.sha256(header.encode())

    def add(self, name: str, text: str) -> None:
        for part in (name.encode(), text.encode()):
            self._sha256.update(len(part).to_bytes(8, "little") + part)

    def hexdigest(self) -> str:
        return self._sha256.hexdigest()


# --- What the interpreter carries -------------------------------------------------


def _stdlib() -> Path:
    return Path(sysconfig.get_path("stdlib"))


def _files(stdlib: Path) -> dict[str, str]:
    """The library's source files: relative posix path -> text, sorted by path."""
    files = {}
    for path in sorted(_source_paths(stdlib)):
        try:
            text = (stdlib / path).read_bytes().decode()
        except (OSError, UnicodeDecodeError):
            continue  # a few files are deliberately in another encoding
        text = text.removeprefix("\ufeff").replace("\r\n", "\n")
        if text.strip():
            files[path] = text
    if not files:
        raise InputError(
            f"the embedded corpus needs Python source files under {stdlib}, found "
            "none: use an interpreter with its standard library, or name your own "
            "data in data.sources"
        )
    return files


def _source_paths(stdlib: Path) -> Iterator[str]:
    for folder, folders, names in os.walk(stdlib):
        folders[:] = [
            name
            for name in folders
            if name not in _SKIPPED_DIRS and not name.startswith("config-")
        ]
        relative = Path(folder).relative_to(stdlib)
        for name in names:
            if name.endswith(".py") and not _SKIPPED.fullmatch(name):
                yield (relative / name).as_posix()


def _topics() -> tuple[dict[str, str], str]:
    """The documentation topics by name, and "present" or why there are none."""
    try:
        topics = importlib.import_module("pydoc_data.topics").topics
    except (ImportError, AttributeError) as error:
        _log.warning(
            "pydoc_data.topics cannot be read (%s): the prose of the embedded corpus "
            "is docstrings only",
            error,
        )
        return {}, f"absent: {error}"
    return dict(sorted(topics.items())), "present"


def docstrings(source: str) -> list[str]:
    r"""The docstrings of a module, its classes and functions, dedented, in order.

    A source that this interpreter cannot parse has none.

    Example:
      >>> docstrings('def f():\n    "Does it."')
      ['Does it.']
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in old sources
            tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError):
        return []
    found = (_docstring(node) for node in _definitions(tree))
    return [text for text in found if text]


def _definitions(node: ast.AST) -> Iterator[ast.AST]:
    """`node` and the definitions inside it, in source order; expressions are skipped.

    `ast.walk` would visit every expression of the library for nothing.
    """
    yield node
    pending = [node]
    while pending:
        parent = pending.pop()
        for field in ("body", "orelse", "handlers", "finalbody"):
            for child in getattr(parent, field, None) or ():
                if isinstance(child, ast.stmt | ast.ExceptHandler):
                    if isinstance(
                        child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
                    ):
                        yield child
                    pending.append(child)


def _docstring(node) -> str | None:
    match node.body[:1]:
        case [ast.Expr(value=ast.Constant(value=str(text)))]:
            return inspect.cleandoc(text).strip()
    return None


# --- Splits -----------------------------------------------------------------------


@dataclasses.dataclass
class _Pieces:
    documents: dict[Domain, dict[Split, list[str]]]
    short_docstrings: list[str]  # of training files; too short to be documents


def _split_by_name(files: Mapping[str, str], topics: Mapping[str, str]) -> _Pieces:
    documents = {domain: {"train": [], "heldout": []} for domain in DOMAINS}
    pieces = _Pieces(documents=documents, short_docstrings=[])
    for name, text in topics.items():
        documents["prose"][_split_of("topic", name)].append(text)
    for name, source in files.items():
        split = _split_of("file", name)
        documents["code"][split].append(source)
        for text in docstrings(source):
            if len(text) >= _MIN_DOCSTRING:
                documents["prose"][split].append(text)
            elif split == "train":
                pieces.short_docstrings.append(text)
    return pieces


def _split_of(kind: str, name: str) -> Split:
    digest = hashlib.sha256(f"{kind}:{name}".encode()).digest()
    fraction = int.from_bytes(digest[:8], "little") / 2**64
    return "heldout" if fraction < _HELDOUT_FRACTION[kind] else "train"


def paragraphs(text: str) -> list[str]:
    r"""Blank-line separated paragraphs, as they stand.

    Example:
      >>> paragraphs("a\nb\n \n\nc")
      ['a\nb', 'c']
    """
    return [part for part in re.split(r"\n(?:[ \t]*\n)+", text) if part.strip()]


def paragraph_key(paragraph: str) -> str | None:
    r"""What makes two paragraphs the same; None where one is too short to matter.

    Indentation, line breaks, comment signs and the quotes of a docstring do not
    count, so that a docstring and its copy inside a source file are the same.

    Example:
      >>> paragraph_key("# Licensed under the terms\n# that everybody knows " * 2)
      'Licensed under the terms that everybody knows # Licensed under the terms that everybody knows'
      >>> paragraph_key("too short")
    """  # noqa: E501
    lines = (line.strip().removeprefix("#") for line in paragraph.split("\n"))
    key = " ".join(" ".join(lines).split()).strip("\"' ")
    return key if len(key) >= _MIN_PARAGRAPH else None


def _without_duplicates(documents, also_seen: Iterable[str]):
    """Drops repeated documents, and held-out paragraphs that occur in training."""
    seen: set[str] = set()  # documents, of either domain and split
    known: set[str] = set()  # keys of training paragraphs
    clean = {domain: {"train": [], "heldout": []} for domain in documents}
    for domain, splits in documents.items():
        for text in splits["train"]:
            if text not in seen:
                seen.add(text)
                clean[domain]["train"].append(text)
    for texts in (*(clean[domain]["train"] for domain in clean), also_seen):
        for text in texts:
            known.update(filter(None, map(paragraph_key, paragraphs(text))))
    for domain, splits in documents.items():
        for text in splits["heldout"]:
            text = _without_known(text, known)
            if text and text not in seen:
                seen.add(text)
                clean[domain]["heldout"].append(text)
    return clean


def _without_known(text: str, known: set[str]) -> str:
    parts = paragraphs(text)
    kept = [part for part in parts if paragraph_key(part) not in known]
    return text if len(kept) == len(parts) else "\n\n".join(kept)
