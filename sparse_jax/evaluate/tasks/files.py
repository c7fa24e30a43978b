"""Where the files of a task lie, and their documents."""

import dataclasses
import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from sparse_jax.data.records import SUFFIX, Record, read_records
from sparse_jax.evaluate.tasks.document import Document, Task
from sparse_jax.types import InputError

Paths = tuple[Path, ...]

_UNCONDITIONAL = 1_000_000


def find(name: str, task: Task, data_dir: str | Path) -> Paths:
    """The files with the documents of a task.

    Args:
      name: of the task.
      task: the task.
      data_dir: a folder, in which the task's usual names are tried; or a file.

    Raises:
      InputError: there is no such folder, or no file of the task in it.
    """
    folder = Path(data_dir)
    if folder.is_file():
        return (folder,)
    if not folder.is_dir():
        raise InputError(f"--data_dir={data_dir}: there is no such folder or file")
    found = search(task.files, folder, parts=task.group_of_file is not None)
    if not found:
        raise InputError(
            f"{data_dir} holds no file of task {name}: looked for "
            f"{', '.join(task.files)} with a suffix .jsonl, .json, .csv (also .gz) or "
            ".parquet; put one there, or give its path as --data_dir"
        )
    return found


def find_shots(task: Task, data_dir: str | Path) -> Paths:
    """The files with the examples of a task, beside its documents; or none.

    Raises:
      InputError: several files are of one name.
    """
    folder, parts = Path(data_dir), task.group_of_file is not None
    return search(task.shot_files, folder, parts=parts) if folder.is_dir() else ()


def search(names: Sequence[str], folder: Path, *, parts: bool = False) -> Paths:
    """All files of the first of some names that any file has.

    Args:
      names: without suffix; `*` stands for anything, and best for nothing.
      folder: where they are looked for.
      parts: files whose names differ in more than numbers are parts of one data set.

    Raises:
      InputError: such files are there, but they are not parts of one.
    """
    for name in names:
        stems = {p: _stem(p) for p in sorted(folder.glob(f"{name}.*"))}
        pattern = re.escape(name.rsplit("/", 1)[-1]).replace(r"\*", ".*")
        found = [p for p, stem in stems.items() if re.fullmatch(pattern, stem or "")]
        plain = name.rsplit("/", 1)[-1].replace("*", "")
        found = [p for p in found if stems[p] == plain] or found
        # Of a file that is there in several formats, one.
        found = [p for p in found if p.suffixes[-1:] == found[0].suffixes[-1:]]
        kinds = {re.sub(r"\d+", "0", stems[p] or "") for p in found}
        if len(kinds) > 1 and not parts:
            raise InputError(
                f"{folder} holds several files that {name!r} stands for: "
                f"{', '.join(p.name for p in found)}; give the path of one as "
                "--data_dir, or remove the others"
            )
        if found:
            return tuple(found)
    return ()


def _stem(path: Path) -> str | None:
    """A file's name without its suffix; None of a file that holds no records."""
    found = SUFFIX.search(path.name)
    return path.name[: found.start()] if found else None


def read(task: Task, paths: Sequence[Path]) -> list[Document]:
    """The documents of some files, those that are not asked included.

    Raises:
      InputError: a record of them cannot be read, with its place.
    """
    documents = []
    for path in paths:
        for where, record in joined(read_records(path)):
            document = task.document(record, where)
            if task.group_of_file is not None and not document.group:
                group = task.group_of_file(path)
                document = dataclasses.replace(document, group=group)
            documents.append(document)
    return documents


def joined(records: Iterable[tuple[str, Record]]) -> Iterator[tuple[str, Record]]:
    """Puts the requests of a document together, one a line in OLMo's files.

    Other records pass unchanged. What is made of several lines has the fields
    `asked_query`, `choices` and `gold`, and the place of the first. Requests of the
    choices behind nothing but "Answer:", whose numbers begin at a million, are left
    out.
    """
    for _, group in itertools.groupby(records, key=lambda item: _request_key(*item)):
        (where, record), *others = group
        if _request_key(where, record) == where:
            yield where, record
            continue
        if record["doc_id"] >= _UNCONDITIONAL:
            continue
        lines = [record, *(other for _, other in others)]
        yield (
            where,
            {
                "asked_query": record["request"].get("context"),
                "choices": [
                    str(line["request"].get("continuation", ""))[1:] for line in lines
                ],
                "gold": record["label"],
            },
        )


def _request_key(where: str, record: Record) -> str:
    """The same for all requests of a document; the place of any other record."""
    number = record.get("doc_id")
    if "label" not in record or not isinstance(number, int):
        return where
    return f"request {number}" if isinstance(record.get("request"), dict) else where
