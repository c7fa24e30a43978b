"""Tokenised sources on disk: written once, memory-mapped ever after.

A store is a directory: `tokens.bin` (uint16 or uint32, documents one after another,
each ended by the tokenizer's separator), `lengths.bin` (int64, one per document),
`heldout.jsonl` (held-out texts) and `meta.json`, made as `cached` says.
"""

import dataclasses
import hashlib
import json
import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int32, Int64, UInt
from tqdm.auto import tqdm

from sparse_jax.data import cached
from sparse_jax.data.sources import Shard
from sparse_jax.data.tokenizer import Tokenizer

SEPARATOR = "\n\n"
"""What held-out documents are joined with into one text."""

# Part of every store's name: raise it when the format changes.
_VERSION = 1
_GROUP_BYTES = 4_000_000  # text encoded at a time

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Store:
    """A tokenised source.

    Attributes:
      path: its directory.
      tokens: [N] ids of the training documents.
      lengths: int64 [D] tokens of each training document, separator included.
      meta: `train` and `heldout` documents and bytes, `tokens`, `sha256`, and
        `corpus`, the fingerprint of the embedded corpus or None.
    """

    path: Path
    tokens: UInt[np.ndarray, " N"]
    lengths: Int64[np.ndarray, " D"]
    meta: dict[str, Any]

    def heldout_documents(self, limit: int | None) -> list[str]:
        """The held-out documents, at most `limit` bytes of them, but at least one."""
        texts, total = [], 0
        with open(self.path / "heldout.jsonl", encoding="utf-8") as file:
            for line in file:
                text = json.loads(line)
                total += len(text.encode())
                if texts and limit is not None and total > limit:
                    break
                texts.append(text)
        return texts

    def heldout(
        self, tokenizer: Tokenizer, limit: int | None
    ) -> tuple[Int32[np.ndarray, " n"], Int32[np.ndarray, " n"]]:
        """The held-out stream: ids and bytes per token, see `Dataset.heldout`."""
        kept = self.path / f"heldout-{limit}.npy"
        if not kept.exists():
            text = SEPARATOR.join(self.heldout_documents(limit))
            stream = np.stack(tokenizer.encode_with_bytes(text))
            temporary = kept.with_suffix(f".{os.getpid()}.tmp")
            try:
                with open(temporary, "wb") as file:
                    np.save(file, stream)
                os.replace(temporary, kept)
            except OSError as error:
                _log.info("%s is not cached: %s", kept, error)
                temporary.unlink(missing_ok=True)
            return stream[0], stream[1]
        try:
            ids, nbytes = np.load(kept, allow_pickle=False)
        except (OSError, ValueError) as error:
            raise cached.damaged(kept, error) from error
        return ids, nbytes

    def heldout_counts(self, tokenizer: Tokenizer, limit: int | None) -> dict[str, int]:
        """Documents, bytes and tokens that `heldout` gives; zeros where it has none."""
        if not self.meta["heldout"]["documents"]:
            return {"documents": 0, "bytes": 0, "tokens": 0}
        ids, nbytes = self.heldout(tokenizer, limit)
        documents = len(self.heldout_documents(limit))
        return {"documents": documents, "bytes": int(nbytes.sum()), "tokens": len(ids)}


def build_store(
    shards: Sequence[Shard],
    tokenizer: Tokenizer,
    cache_dir: Path,
    *,
    name: str,
    progress: bool = True,
) -> Store:
    """Tokenises a source's shards, or finds them tokenised.

    Args:
      shards: what to read.
      tokenizer: encodes the documents, without special tokens but for a separator
        after each.
      cache_dir: where stores live.
      name: of the source, for messages.
      progress: show a progress bar if there is a terminal.

    Raises:
      InputError: a shard cannot be read, or the cache not be written.
    """
    identity = [
        _VERSION,
        tokenizer.fingerprint,
        *(shard.identity() for shard in shards),
    ]

    def write(shard: Shard, folder: Path, bar: tqdm) -> None:
        _tokenise(shard, tokenizer, folder, bar)

    options = {"name": name, "write": write, "merge": _merge, "progress": progress}
    return _load(cached.find_or_build(shards, identity, cache_dir, **options))


def _tokenise(shard: Shard, tokenizer: Tokenizer, folder: Path, bar: tqdm) -> None:
    """Writes one shard as a store."""
    separator = tokenizer.separator_id
    dtype = np.dtype("<u2" if tokenizer.vocab_size <= 1 << 16 else "<u4")
    count = {split: {"documents": 0, "bytes": 0} for split in ("train", "heldout")}
    digest, tokens = hashlib.sha256(), 0
    with (
        open(folder / "tokens.bin", "wb") as tokens_file,
        open(folder / "lengths.bin", "wb") as lengths_file,
        open(folder / "heldout.jsonl", "w", encoding="utf-8") as heldout_file,
    ):
        for group in _groups(shard):
            for split, text in group:
                size = len(text.encode())
                count[split]["documents"] += 1
                count[split]["bytes"] += size
                digest.update(f"{split} {size}\n{text}".encode())
            train = [text for split, text in group if split == "train"]
            for ids in tokenizer.encode_batch(train):
                np.append(ids, separator).astype(dtype).tofile(tokens_file)
                np.array([len(ids) + 1], "<i8").tofile(lengths_file)
                tokens += len(ids) + 1
            for split, text in group:
                if split == "heldout":
                    heldout_file.write(json.dumps(text) + "\n")
            bar.update(sum(len(text.encode()) for _, text in group))
    meta = count | {
        "dtype": dtype.str,
        "tokens": tokens,
        "sha256": digest.hexdigest(),
        "corpus": shard.corpus(),
    }
    (folder / "meta.json").write_text(json.dumps(meta, indent=1))


def _groups(shard: Shard) -> Iterator[list[tuple[str, str]]]:
    group, size = [], 0
    for split, text in shard.documents():
        group.append((split, text))
        size += len(text)
        if size >= _GROUP_BYTES:
            yield group
            group, size = [], 0
    if group:
        yield group


def _merge(parts: Sequence[Path], folder: Path) -> None:
    """Concatenates the stores of shards into one."""
    cached.concatenate(parts, folder, ("tokens.bin", "lengths.bin", "heldout.jsonl"))
    metas = [json.loads((part / "meta.json").read_text()) for part in parts]
    digest = hashlib.sha256("".join(meta["sha256"] for meta in metas).encode())
    merged = {
        split: {
            what: sum(meta[split][what] for meta in metas)
            for what in ("documents", "bytes")
        }
        for split in ("train", "heldout")
    } | {
        "dtype": metas[0]["dtype"],
        "tokens": sum(meta["tokens"] for meta in metas),
        "sha256": digest.hexdigest(),
        "corpus": metas[0]["corpus"],
    }
    (folder / "meta.json").write_text(json.dumps(merged, indent=1))


def _load(folder: Path) -> Store:
    try:
        meta = json.loads((folder / "meta.json").read_text())
        tokens = cached.map_array(
            folder / "tokens.bin", np.dtype(meta["dtype"]), meta["tokens"]
        )
        documents = meta["train"]["documents"]
        lengths = cached.map_array(folder / "lengths.bin", np.dtype("<i8"), documents)
        if lengths.sum() != meta["tokens"] or (lengths < 1).any():
            raise ValueError("lengths.bin does not fit tokens.bin")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise cached.damaged(folder, error) from error
    return Store(path=folder, tokens=tokens, lengths=lengths, meta=meta)
