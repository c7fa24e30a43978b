"""The embedded corpus: Python code and English prose that every interpreter carries.

It needs no network and no data. `code` is the interpreter's own standard library;
`prose` is its documentation topics (`pydoc_data.topics`) and the docstrings of the
same files. Whole files and topics are held out by a hash of their name, a docstring
follows its file, and a held-out paragraph that any training document also contains
is removed, so nothing held out was seen in training.

The text depends on the Python version: `Corpus.fingerprint` names both.
"""

import dataclasses
import functools
import hashlib
import importlib
import logging
import os
import platform
import re
import sysconfig
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal

from sparse_jax.data.excerpts import Documents, docstrings, without_known_paragraphs
from sparse_jax.types import InputError

Domain = Literal["code", "prose"]
Split = Literal["train", "heldout"]

DOMAINS: tuple[Domain, ...] = ("code", "prose")
SPLITS: tuple[Split, ...] = ("train", "heldout")

# Part of every cache key: raise it when a change here changes the documents.
_VERSION = 1
_HELDOUT_FRACTION = {"file": 0.08, "topic": 0.16}
_MIN_DOCSTRING = 80  # characters

# Tests, packages that a user installed, and `topics.py`, whose text is `prose`.
_SKIPPED_DIRS = {
    "site-packages",
    "dist-packages",
    "test",
    "tests",
    "idle_test",
    "__pycache__",
    "lib-dynload",
    "pydoc_data",
}
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

    documents: Documents
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
    documents = without_known_paragraphs(pieces.documents, pieces.short_docstrings)
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


@dataclasses.dataclass
class _Pieces:
    documents: dict[str, dict[str, list[str]]]
    short_docstrings: list[str]  # of training files; too short to be documents


def _split_by_name(files: Mapping[str, str], topics: Mapping[str, str]) -> _Pieces:
    documents: dict[str, dict[str, list[str]]] = {
        domain: {split: [] for split in SPLITS} for domain in DOMAINS
    }
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
