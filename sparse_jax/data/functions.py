"""Fine-tuning on the embedded corpus: the library's own functions, and their summaries.

An example asks for a Python function by its signature and what it does, and is answered
with its body; another kind of record asks which of four bodies is the function's. All
come from the files of the embedded corpus, held-out ones from its held-out files.
"""

import ast
import hashlib
import json
import random
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from sparse_jax.data.corpus import SPLITS, corpus_identity, load_corpus
from sparse_jax.data.excerpts import parse_source
from sparse_jax.files import write_file

CHOICES = 4
_LONGEST = 400  # characters of a body
_SHORTEST = 30

Record = dict[str, object]


def write_functions(cache_dir: str | Path) -> Path:
    """Writes the records as JSON lines, once for an interpreter.

    `functions/train.jsonl` and `functions/heldout.jsonl` have `instruction` and
    `output`; `functions/choice.jsonl` has `query`, `choices` and `gold`, of held-out
    functions alone.

    Args:
      cache_dir: a folder in it is made.

    Returns:
      The folder that holds `functions/`.

    Raises:
      InputError: the interpreter has no standard library in source form, or the disk
        cannot be written.
    """
    key = hashlib.sha256(f"1 {corpus_identity()}".encode()).hexdigest()[:16]
    folder = Path(cache_dir) / "functions" / key
    files = {split: folder / "functions" / f"{split}.jsonl" for split in SPLITS}
    choice = folder / "functions" / "choice.jsonl"
    if not all(path.exists() for path in [*files.values(), choice]):
        records = function_records()
        for split, path in files.items():
            _write(path, records[split])
        _write(choice, choice_records(records["heldout"]))
    return folder


def function_records() -> dict[str, list[Record]]:
    """`instruction` and `output` of every short documented function, by split.

    A function that the training files have too is not held out.
    """
    documents = load_corpus().documents["code"]
    found = {
        split: [r for source in documents[split] for r in _functions(source)]
        for split in SPLITS
    }
    seen = {record["output"] for record in found["train"]}
    found["heldout"] = [r for r in found["heldout"] if r["output"] not in seen]
    return {split: _distinct(records) for split, records in found.items()}


def choice_records(records: Sequence[Record], seed: int = 0) -> list[Record]:
    """Asks of each function which of four bodies, of functions as long, is its own.

    Args:
      records: of `function_records`.
      seed: of the order of the answers.
    """
    rng = random.Random(seed)
    by_length = sorted(records, key=lambda record: len(str(record["output"])))
    rows = []
    for place, record in enumerate(by_length):
        first = max(0, min(place - CHOICES, len(by_length) - 2 * CHOICES - 1))
        near = {
            str(other["output"]): other
            for other in by_length[first : first + 2 * CHOICES + 1]
            if other["output"] != record["output"]
        }
        others = rng.sample([*near.values()], min(CHOICES - 1, len(near)))
        answers = [record, *others]
        rng.shuffle(answers)
        bodies = [answer["output"] for answer in answers]
        row = {"query": record["instruction"], "choices": bodies}
        rows.append(row | {"gold": answers.index(record)})
    return rows


def _functions(source: str) -> Iterator[Record]:
    """The documented functions of a file whose bodies are short."""
    tree = parse_source(source)
    if tree is None:
        return
    lines = source.split("\n")
    for node in ast.walk(tree):
        if not isinstance(node, ast.FunctionDef) or len(node.body) < 2:
            continue
        summary = (ast.get_docstring(node) or "").split("\n\n")[0]
        first = node.body[1]
        body = "\n".join(lines[first.lineno - 1 : node.end_lineno])
        body = _dedented(body, first.col_offset)
        if not summary or not _SHORTEST <= len(body) <= _LONGEST:
            continue
        does = " ".join(summary.split())
        asked = f"def {node.name}({ast.unparse(node.args)}):\n{does}"
        if len(asked) <= _LONGEST:
            yield {"instruction": asked, "output": body}


def _dedented(body: str, indent: int) -> str:
    return re.sub(rf"(?m)^ {{{indent}}}", "", body).rstrip()


def _distinct(records: Sequence[Record]) -> list[Record]:
    kept: dict[str, Record] = {}
    for record in records:
        kept.setdefault(str(record["instruction"]), record)
    return list(kept.values())


def _write(path: Path, records: Sequence[Record]) -> None:
    text = "".join(json.dumps(record) + "\n" for record in records)
    write_file(path, text.encode())
