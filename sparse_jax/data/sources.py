"""Streams of documents from files: text, JSON lines, Parquet, ArrayRecord, TFDS.

A source is a path (a file, a glob, a directory, `tfds:NAME:split`, `embedded:code`);
it expands into shards, the units that are read, tokenised and cached one by one.
"""

import dataclasses
import glob
import hashlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, get_args

from sparse_jax.data import corpus, readers, records, tasks
from sparse_jax.types import InputError

Format = Literal["auto", "text", "jsonl", "parquet", "array_record", "tfds", "embedded"]

_SUFFIXES: tuple[tuple[str, Format], ...] = (
    (r"\.(txt|text|md)(\.gz)?", "text"),
    (r"\.(jsonl|json|ndjson)(\.gz)?", "jsonl"),
    (r"\.(parquet|pq)", "parquet"),
    (r"\.array_?record(-\d+-of-\d+)?", "array_record"),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SourceConfig:
    """One domain's data.

    Attributes:
      path: `embedded:code`, `embedded:prose`, `tfds:NAME[/CONFIG][:VERSION][:SPLIT]`
        (or a prepared data set's directory in place of the name), or a file, a glob
        (`**` too) or a directory, which is searched for files of a known format.
      format: how to read it; `auto` goes by prefix and suffix.
      field: the field of a JSON line, Parquet column or TFDS feature with the text.
      task: name in `tasks` of what the records are; the source then gives whole
        conversations to fine-tune on in place of documents. None: documents.
      template: of a task's conversations, see `chat.chat_template`; None: the task's.
      too_long: of a task: an example that no row can hold is dropped or truncated.
      separator: what stands between the documents of a text file, such as TinyStories'
        `<|endoftext|>`; it belongs to none. None: a text file is one document.
      weight: share of the rows in the mixture, relative to the other sources.
      heldout: path of the held-out documents, read like `path`. None: a part of
        `path`'s own documents is held out.
      heldout_fraction: that part, chosen by a hash of the document's text, so that
        equal documents land on the same side. The embedded corpus has its own split.
    """

    path: str = "embedded:code"
    format: Format = "auto"
    field: str = "text"
    task: str | None = None
    template: str | None = None
    too_long: Literal["drop", "truncate"] = "drop"
    separator: str | None = None
    weight: float = 1.0
    heldout: str | None = None
    heldout_fraction: float = 0.01

    def __post_init__(self) -> None:
        if not self.weight > 0 or self.weight == float("inf"):
            raise InputError(
                f"weight of source {self.path} must be positive, got {self.weight}: "
                "leave a source out to not use it"
            )
        if not 0 <= self.heldout_fraction < 1:
            raise InputError(
                f"heldout_fraction of source {self.path} must be in [0, 1), got "
                f"{self.heldout_fraction}"
            )
        if self.task is not None:
            tasks.find_task(self.task)
        elif self.template is not None:
            raise InputError(
                f"template of source {self.path} renders the conversations of a task: "
                "set task, or leave template out"
            )
        if self.separator == "":
            raise InputError(
                f"separator of source {self.path} must not be empty: leave it out, and "
                "every text file is one document"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shard:
    """One file (or TFDS split, or embedded domain), and how to read it.

    Attributes:
      path: where it is.
      format: never "auto".
      field: see `SourceConfig`.
      task: see `SourceConfig`.
      separator: see `SourceConfig`; text only.
      split: the split of all its documents; None: each by a hash of its text.
      heldout_fraction: see `SourceConfig`.
    """

    path: str
    format: Format
    field: str = "text"
    task: str | None = None
    separator: str | None = None
    split: corpus.Split | None = "train"
    heldout_fraction: float = 0.0

    def documents(self, limit: int | None = None) -> Iterator[tuple[corpus.Split, str]]:
        """Streams (split, text); empty documents are left out.

        Args:
          limit: of a text file read at most so many bytes.

        Raises:
          InputError: the shard cannot be read, or holds no document.
        """
        if self.format == "embedded":
            splits = corpus.load_corpus().documents[_embedded_domain(self.path)]
            for split in corpus.SPLITS:
                yield from ((split, text) for text in splits[split])
            return
        if self.format == "text":
            texts = readers.read_text(self.path, self.separator, limit)
        else:
            texts = readers.READERS[self.format](self.path, self.field)
        empty = True
        for text in texts:
            if text.strip():
                empty = False
                yield self.split or _hash_split(text, self.heldout_fraction), text
        if empty:
            raise InputError(
                f"{self.path} holds no text: remove it or name another path"
            )

    def conversations(self) -> Iterator[tuple[corpus.Split, tasks.Turns, str]]:
        """Streams (split, turns, place) of a task's records.

        Equal first questions land in the same split, however they are answered.

        Raises:
          InputError: the shard cannot be read, or a record is not the task's.
        """
        task = tasks.find_task(self.task or "")
        for place, record in records.read_records(self.path):
            turns = task.read(record, place)
            asked = next((t["content"] for t in turns if t["role"] == "user"), place)
            split = self.split or _hash_split(asked, self.heldout_fraction)
            yield split, turns, place

    def identity(self) -> str:
        """A string that changes when the documents may have changed."""
        parts = [self.format, self.field, self.split, self.heldout_fraction]
        parts += [own for own in (self.separator, self.task) if own is not None]
        if self.format == "embedded":
            return repr([self.path, corpus.corpus_identity()])
        if self.format == "tfds":
            return repr([readers.tfds_identity(self.path), *parts])
        stat = os.stat(self.path)
        where = os.path.abspath(self.path)
        return repr([where, stat.st_size, stat.st_mtime_ns, *parts])

    def corpus(self) -> dict | None:
        """The fingerprint of the embedded corpus; None for other data."""
        embedded = self.format == "embedded"
        return corpus.load_corpus().fingerprint if embedded else None

    def text_bytes(self) -> int | None:
        """About how much text there is to read, None where the file does not tell."""
        if corpus_fingerprint := self.corpus():
            sizes = corpus_fingerprint["bytes"][_embedded_domain(self.path)]
            return sum(sizes.values())
        plain = self.format in ("text", "jsonl", "array_record")
        return os.path.getsize(self.path) if plain and self.path[-3:] != ".gz" else None


def source_shards(config: SourceConfig) -> list[Shard]:
    """All shards of a source, held-out ones last.

    Raises:
      InputError: a path that leads to nothing, or to files of an unknown format.
    """
    shards = _separated(config, config.path)
    if config.heldout is None:
        fraction = config.heldout_fraction
        split = None if fraction else "train"
        return [
            dataclasses.replace(shard, split=split, heldout_fraction=fraction)
            for shard in shards
        ]
    held_out = _separated(config, config.heldout)
    if any(shard.format == "embedded" for shard in [*shards, *held_out]):
        raise InputError(
            f"source {config.path} cannot have heldout {config.heldout}: the embedded "
            "corpus holds out its own documents; leave heldout out"
        )
    both = {shard.path for shard in shards} & {shard.path for shard in held_out}
    if both:
        raise InputError(
            f"{min(both)} is training text of source {config.path} and in its heldout "
            f"{config.heldout} too: keep the two apart"
        )
    return shards + [dataclasses.replace(shard, split="heldout") for shard in held_out]


def _separated(config: SourceConfig, path: str) -> list[Shard]:
    shards = find_shards(path, config.format, config.field)
    for shard in shards:
        if config.task is not None and shard.format not in ("jsonl", "parquet"):
            raise InputError(
                f"source {config.path} is of task {config.task!r}, but {shard.path} is "
                f"read as {shard.format}: name JSON lines or Parquet files"
            )
    shards = [dataclasses.replace(shard, task=config.task) for shard in shards]
    if config.separator is None:
        return shards
    for shard in shards:
        if shard.format != "text":
            raise InputError(
                f"source {config.path} has the separator {config.separator!r}, but "
                f"{shard.path} is read as {shard.format}, which keeps its documents "
                "apart itself: leave separator out"
            )
    return [dataclasses.replace(s, separator=config.separator) for s in shards]


def find_shards(path: str, format: Format = "auto", field: str = "text") -> list[Shard]:
    """The files that a path, glob or directory stands for, sorted, with their format.

    Raises:
      InputError: nothing found, or no known format.
    """
    if format not in get_args(Format):
        raise InputError(
            f"format of {path} must be one of {list(get_args(Format))}, got {format!r}"
        )
    for prefix in ("embedded", "tfds"):
        if path.startswith(f"{prefix}:") or format == prefix:
            if not path.startswith(f"{prefix}:") or format not in ("auto", prefix):
                raise InputError(
                    f"path {path} and format {format!r} do not fit: {prefix} paths "
                    f"begin with {prefix!r} and a colon"
                )
            if prefix == "embedded":
                _embedded_domain(path)
            return [Shard(path=path, format=prefix, field=field)]
    shards = []
    for file in _files(path, format):
        known = _format_of(file) if format == "auto" else format
        if known is None:
            raise InputError(
                f"{file} has no suffix that names its format (.txt, .jsonl, .json, "
                ".parquet, .array_record): set format"
            )
        if os.path.getsize(file) == 0:
            raise InputError(f"{file} is empty: remove it or name another path")
        shards.append(Shard(path=file, format=known, field=field))
    return shards


def _files(path: str, format: Format) -> list[str]:
    if os.path.isdir(path):
        found = [str(p) for p in Path(path).rglob("*") if p.is_file()]
        found = [p for p in found if not os.path.basename(p).startswith(".")]
        if format == "auto":
            found = [p for p in found if _format_of(p)]
        missing = "holds no file of a known format"
    elif os.path.exists(path):
        found, missing = [path], ""
    else:
        found = [p for p in glob.glob(path, recursive=True) if os.path.isfile(p)]
        missing = "matches no file" if glob.has_magic(path) else "does not exist"
    if not found:
        raise InputError(f"data path {path} {missing}: check the path")
    return sorted(found)


def _format_of(path: str) -> Format | None:
    for suffix, known in _SUFFIXES:
        if re.search(suffix + "$", path):
            return known
    return None


def _embedded_domain(path: str) -> corpus.Domain:
    domain = path.removeprefix("embedded:")
    if domain not in corpus.DOMAINS:
        raise InputError(
            f"{path} is not part of the embedded corpus: choose embedded:code or "
            "embedded:prose"
        )
    return domain


def _hash_split(text: str, heldout_fraction: float) -> corpus.Split:
    digest = hashlib.sha256(text.encode()).digest()
    fraction = int.from_bytes(digest[:8], "little") / 2**64
    return "heldout" if fraction < heldout_fraction else "train"
