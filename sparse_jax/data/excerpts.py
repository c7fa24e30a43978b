"""Docstrings and paragraphs: what two texts of the embedded corpus may share."""

import ast
import inspect
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping

_MIN_PARAGRAPH = 50  # characters, after whitespace is normalised

Documents = Mapping[str, Mapping[str, list[str]]]


def docstrings(source: str) -> list[str]:
    r"""The docstrings of a module, its classes and functions, dedented, in order.

    A source that this interpreter cannot parse has none.

    Example:
      >>> docstrings('def f():\n    "Does it."')
      ['Does it.']
    """
    tree = parse_source(source)
    if tree is None:
        return []
    found = (_docstring(node) for node in _definitions(tree))
    return [text for text in found if text]


def parse_source(source: str) -> ast.Module | None:
    """The syntax tree of a file; None where this interpreter cannot parse it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in old sources
            return ast.parse(source)
    except (SyntaxError, ValueError, RecursionError):
        return None


def _definitions(node: ast.AST) -> Iterator[ast.AST]:
    """`node` and the definitions inside it, in source order; expressions are skipped.

    `ast.walk` would visit every expression of the library for nothing.
    """
    if isinstance(
        node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
    ):
        yield node
    for field in ("body", "handlers", "orelse", "finalbody"):
        for child in getattr(node, field, ()):
            yield from _definitions(child)


def _docstring(node) -> str | None:
    match node.body[:1]:
        case [ast.Expr(value=ast.Constant(value=str(text)))]:
            return inspect.cleandoc(text).strip()
    return None


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


def without_known_paragraphs(
    documents: Documents, also_seen: Iterable[str]
) -> Documents:
    """Drops repeated documents, and held-out paragraphs that occur in training.

    Args:
      documents: domain -> split ("train", "heldout") -> texts.
      also_seen: training text that is part of no document.
    """
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
