"""Fine-tuning examples on disk, tokenised once, see `cached`.

For each of `train` and `heldout` a folder holds `SPLIT.tokens.bin` (uint16 or uint32),
`SPLIT.response.bin` (uint8: 1 where the model writes), `SPLIT.nbytes.bin` (uint16) and
`SPLIT.lengths.bin` (int64, one per example); and `meta.json`.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
from jaxtyping import Bool, Int
from tqdm import tqdm

from sparse_jax.data import cached
from sparse_jax.data.chat import (
    ChatTemplate,
    TemplateError,
    chat_template,
    encode_rendered,
)
from sparse_jax.data.corpus import SPLITS
from sparse_jax.data.example_packing import Examples, TooLong
from sparse_jax.data.sources import Shard
from sparse_jax.data.tasks import has_response
from sparse_jax.data.tokenizer import Tokenizer
from sparse_jax.types import InputError

# Part of every folder's name: raise it when the format changes.
_VERSION = 1
_ARRAYS = ("tokens", "response", "nbytes", "lengths")
_SKIPPED = ("no_response", "template")


class ExampleStore:
    """A tokenised source of examples.

    Attributes:
      train: the examples to learn from.
      heldout: the others.
      meta: `train` and `heldout` (documents and bytes of text), `tokens` of the
        training examples, `sha256`, and `skipped`: records of which nothing could be
        learned, by reason (`no_response`, `template`).
    """

    def __init__(self, folder: Path, *, too_long: TooLong, seed: int):
        """Maps a folder into memory.

        Raises:
          InputError: it is damaged.
        """
        try:
            self.meta = json.loads((folder / "meta.json").read_text())
            self.train, self.heldout = (
                Examples(**self._arrays(folder, s), too_long=too_long, seed=seed)
                for s in SPLITS
            )
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise cached.damaged(folder, error) from error

    def _arrays(self, folder: Path, split: str) -> dict[str, np.ndarray]:
        dtypes = _dtypes(self.meta["dtype"])
        meta, found = self.meta[split], {}
        for name in _ARRAYS:
            count = meta["documents" if name == "lengths" else "tokens"]
            path = folder / f"{split}.{name}.bin"
            found[name] = cached.map_array(path, dtypes[name], count)
        if found["lengths"].sum() != meta["tokens"] or (found["lengths"] < 1).any():
            raise ValueError(f"{split}.lengths.bin does not fit {split}.tokens.bin")
        return found


def build_examples(
    shards: Sequence[Shard],
    tokenizer: Tokenizer,
    cache_dir: Path,
    *,
    template: str,
    too_long: TooLong,
    seed: int,
    name: str,
    progress: bool = True,
) -> ExampleStore:
    """Tokenises a source's records, or finds them tokenised.

    Records without a turn of the assistant, and conversations that the template
    refuses, are left out and counted.

    Args:
      shards: what to read; all of one task.
      tokenizer: of the model.
      cache_dir: where folders live.
      template: see `chat.chat_template`.
      too_long: see `Examples`.
      seed: of the order of the examples.
      name: of the source, for messages.
      progress: show a progress bar if there is a terminal.

    Raises:
      InputError: a record lacks a field, a file has nothing to learn from, the template
        is none, or the cache cannot be written.
    """
    rendered = chat_template(tokenizer, template)
    texts = (rendered.source, rendered.bos, rendered.eos)
    identity = [
        ("examples", _VERSION),
        tokenizer.fingerprint,
        texts,
        *(shard.identity() for shard in shards),
    ]

    def write(shard: Shard, folder: Path, bar: tqdm) -> None:
        _tokenise(shard, tokenizer, rendered, folder, bar)

    options = {"name": name, "write": write, "merge": _merge, "progress": progress}
    folder = cached.find_or_build(shards, identity, cache_dir, **options)
    return ExampleStore(folder, too_long=too_long, seed=seed)


def _tokenise(
    shard: Shard,
    tokenizer: Tokenizer,
    template: ChatTemplate,
    folder: Path,
    bar: tqdm,
) -> None:
    """Writes one shard's examples."""
    dtype = np.dtype("<u2" if tokenizer.vocab_size <= 1 << 16 else "<u4")
    meta: dict[str, Any] = {
        split: {"documents": 0, "bytes": 0, "tokens": 0} for split in SPLITS
    }
    skipped, digest, refusal = dict.fromkeys(_SKIPPED, 0), hashlib.sha256(), ""
    special = [t for t in (tokenizer.bos_id, tokenizer.eos_id) if t is not None]
    files = {split: _open_all(folder, split) for split in SPLITS}
    try:
        for split, turns, place in shard.conversations():
            if not has_response(turns):
                skipped["no_response"] += 1
                refusal = refusal or f"{place}: no turn of the assistant says anything"
                continue
            try:
                text, spans = template.with_responses(turns)
            except TemplateError as error:
                skipped["template"] += 1
                refusal = refusal or f"{place}: does not render ({error})"
                continue
            ids, nbytes = encode_rendered(tokenizer, text)
            response = responses(text, spans, nbytes)
            if not response.any():
                skipped["template"] += 1
                refusal = refusal or f"{place}: the template leaves the response out"
                continue
            nbytes[np.isin(ids, special)] = 0  # they stand for no text
            _append(files[split], _dtypes(dtype.str), (ids, response, nbytes))
            size = len(text.encode())
            for what, more in (("documents", 1), ("bytes", size), ("tokens", len(ids))):
                meta[split][what] += more
            digest.update(f"{split} {size}\n{text}{spans}".encode())
            bar.update(size)
    finally:
        for file in [file for group in files.values() for file in group.values()]:
            file.close()
    if not any(meta[split]["documents"] for split in SPLITS):
        raise InputError(f"{refusal}; nor is there anything to learn in {shard.path}")
    meta |= {"dtype": dtype.str, "sha256": digest.hexdigest(), "skipped": skipped}
    (folder / "meta.json").write_text(json.dumps(meta, indent=1))


def responses(
    text: str, spans: Sequence[tuple[int, int]], nbytes: Int[np.ndarray, " n"]
) -> Bool[np.ndarray, " n"]:
    """Which tokens hold some of the text inside the spans.

    Args:
      text: what was encoded.
      spans: (begin, end) in characters.
      nbytes: UTF-8 bytes that each token stands for; they add up to the text's.

    Example:
      >>> responses("ab cd", [(2, 5)], np.array([2, 1, 2]))
      array([False,  True,  True])
    """
    ends = np.cumsum(nbytes)
    begins = ends - nbytes
    found = np.zeros(len(nbytes), bool)
    for begin, end in spans:
        first = len(text[:begin].encode())
        last = first + len(text[begin:end].encode())
        found |= (ends > first) & (begins < last)
    return found


def _dtypes(tokens: str) -> dict[str, np.dtype]:
    kinds = {"tokens": tokens, "response": "u1", "nbytes": "<u2", "lengths": "<i8"}
    return {name: np.dtype(kind) for name, kind in kinds.items()}


def _open_all(folder: Path, split: str) -> dict[str, IO[bytes]]:
    return {name: open(folder / f"{split}.{name}.bin", "wb") for name in _ARRAYS}


def _append(
    files: dict[str, IO[bytes]],
    dtypes: dict[str, np.dtype],
    arrays: tuple[np.ndarray, np.ndarray, np.ndarray],
) -> None:
    columns = zip(_ARRAYS, (*arrays, np.array([len(arrays[0])])), strict=True)
    for name, array in columns:
        array.astype(dtypes[name]).tofile(files[name])


def _merge(parts: Sequence[Path], folder: Path) -> None:
    """Concatenates the examples of shards."""
    names = [f"{split}.{name}.bin" for split in SPLITS for name in _ARRAYS]
    cached.concatenate(parts, folder, names)
    metas = [json.loads((part / "meta.json").read_text()) for part in parts]
    digest = hashlib.sha256("".join(meta["sha256"] for meta in metas).encode())
    merged = {
        group: {
            what: sum(meta[group][what] for meta in metas) for what in metas[0][group]
        }
        for group in (*SPLITS, "skipped")
    }
    merged |= {"dtype": metas[0]["dtype"], "sha256": digest.hexdigest()}
    (folder / "meta.json").write_text(json.dumps(merged, indent=1))
