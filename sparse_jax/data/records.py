"""Records of JSON lines, JSON, CSV and Parquet files, each with its place in the file.

What `readers` does for a text per document, this does for whole objects: conversations,
questions with their choices, problems with their tests.
"""

import csv
import io
import os
import re
from collections.abc import Iterator
from typing import Any

from sparse_jax.data import readers
from sparse_jax.types import InputError

Record = dict[str, Any]

SUFFIX = re.compile(r"\.((jsonl|json|ndjson|csv)(\.gz)?|parquet|pq)$")
"""How the names of files end that hold records."""

_ROWS = 1024  # of Parquet held at a time


def read_records(path: str | os.PathLike[str]) -> Iterator[tuple[str, Record]]:
    """Streams (place, record) of a file, in its order.

    JSON lines (`.jsonl`, `.ndjson`, also `.json`), one JSON array of objects (`.json`),
    CSV with a header line, all three also with `.gz`; Parquet (`.parquet`, `.pq`).

    Args:
      path: the file.

    Yields:
      "file:line" (of Parquet "file: row n", of an array "file: item n"), and the
      record; in a CSV file every value is a string.

    Raises:
      InputError: the file is not there, has another suffix, cannot be read, holds
        something that is no object, or nothing at all.
    """
    path = os.fspath(path)
    found = SUFFIX.search(path)
    if not found:
        raise InputError(
            f"{path}: expected a file of records, .jsonl, .json, .csv (also .gz) or "
            ".parquet, found another suffix: name such a file"
        )
    kind = found[2] or found[1]
    if kind in ("parquet", "pq"):
        records = _parquet(path)
    elif kind == "csv":
        records = _csv(path)
    elif kind == "json":
        records = _json(path)
    else:
        records = _lines(path)
    empty = True
    for place, record in records:
        empty = False
        yield place, record
    if empty:
        raise InputError(f"{path} holds no record: remove it or name another path")


def take(record: Record, field: str, place: str, kind: type | tuple = str) -> Any:
    """A field of a record, which must be of a kind.

    Raises:
      InputError: naming the file, the line and the field; also for a text with half of
        a surrogate pair, which JSON can spell but no encoding can hold.
    """
    kinds = kind if isinstance(kind, tuple) else (kind,)
    if field not in record:
        raise InputError(
            f"{place}: field {field!r} is missing, found {sorted(record)}: add it, or "
            "choose the task that these records are of"
        )
    value = record[field]
    right = isinstance(value, kinds) and (bool in kinds or not isinstance(value, bool))
    if not right:
        names = " or ".join(k.__name__ for k in kinds)
        raise InputError(
            f"{place}: field {field!r} must be {names}, found "
            f"{type(value).__name__} {str(value)[:40]!r}: repair the record"
        )
    if isinstance(value, str):
        readers.whole_text(value, f"{place}: field {field!r}")
    return value


def _lines(path: str) -> Iterator[tuple[str, Record]]:
    try:
        with readers.open_file(path) as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    place = f"{path}:{number}"
                    yield place, _object(readers.parse_json(line, place), place)
    except readers.UNREADABLE as error:
        raise readers.unreadable(path, error) from error


def _json(path: str) -> Iterator[tuple[str, Record]]:
    """A JSON array; else JSON lines, which many data sets name `.json`."""
    try:
        with readers.open_file(path) as file:
            start = file.read(64).lstrip()
            if not start.startswith(b"["):
                file.close()
                yield from _lines(path)
                return
            file.seek(0)
            items = readers.parse_json(file.read(), path)
    except readers.UNREADABLE as error:
        raise readers.unreadable(path, error) from error
    for number, item in enumerate(items):
        place = f"{path}: item {number}"
        yield place, _object(item, place)


def _csv(path: str) -> Iterator[tuple[str, Record]]:
    try:
        with readers.open_file(path) as file:
            text = io.TextIOWrapper(file, "utf-8", newline="")
            rows = csv.DictReader(text, strict=True)
            for record in rows:
                place = f"{path}:{rows.line_num}"
                if None in record or None in record.values():
                    raise InputError(
                        f"{place}: expected {len(rows.fieldnames or ())} values as in "
                        "the header line, found another number: repair the line"
                    )
                yield place, record
    except (*readers.UNREADABLE, UnicodeDecodeError, csv.Error) as error:
        raise readers.unreadable(path, error) from error


def _parquet(path: str) -> Iterator[tuple[str, Record]]:
    import pyarrow as pa
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            number = 0
            # As Python objects a row group may be many times its size on disk.
            for batch in file.iter_batches(batch_size=_ROWS):
                for record in batch.to_pylist():
                    yield f"{path}: row {number}", record
                    number += 1
    except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
        raise readers.unreadable(path, error) from error


def _object(value: Any, place: str) -> Record:
    if not isinstance(value, dict):
        raise InputError(
            f"{place}: expected a JSON object, found a {type(value).__name__}: repair "
            "the file"
        )
    return value
