"""Any data path as one stream of tokens, for evaluation and for calibration."""

import numpy as np
from jaxtyping import Int32

from sparse_jax.data.corpus import Split
from sparse_jax.data.sources import Format, Shard, find_shards
from sparse_jax.data.store import SEPARATOR
from sparse_jax.data.tokenizer import Tokenizer


def stream_from_path(
    path: str,
    tokenizer: Tokenizer,
    *,
    field: str = "text",
    format: Format = "auto",
    split: Split = "heldout",
    limit: int | None = None,
) -> tuple[Int32[np.ndarray, " n"], Int32[np.ndarray, " n"]]:
    r"""Encodes the text under a path as one stream, without special tokens.

    Documents are joined with "\n\n"; a single text file is taken verbatim. With a
    limit, reading stops there: every file gives its beginning, an equal share of what
    the files before it have left, so that one directory of huge files costs no more
    than a small one, and gives the same text every time.

    Args:
      path: see `SourceConfig.path`.
      tokenizer: of the model to evaluate.
      field: see `SourceConfig.field`.
      format: see `SourceConfig.format`.
      split: which documents of the embedded corpus (`embedded:code`,
        `embedded:prose`); of any other data all are read.
      limit: at most so many bytes of text; None: all of it.

    Returns:
      ids int32 [n], and nbytes int32 [n], the UTF-8 bytes that each stands for.

    Raises:
      InputError: nothing there, or nothing that can be read.
    """
    shards = find_shards(path, format, field)
    texts: list[str] = []
    left = limit
    for number, shard in enumerate(shards):
        if left is None:
            texts.append(_beginning(shard, split, None))
        elif left > 0:
            texts.append(_beginning(shard, split, -(-left // (len(shards) - number))))
            left -= len(texts[-1].encode()) + len(SEPARATOR)
    return tokenizer.encode_with_bytes(SEPARATOR.join(texts))


def _beginning(shard: Shard, split: Split, limit: int | None) -> str:
    """The first `limit` bytes of a shard's documents, to the last whole character."""
    texts, size = [], 0
    for found, text in shard.documents(limit):
        if shard.format == "embedded" and found != split:
            continue
        texts.append(text)
        size += len(text.encode()) + len(SEPARATOR)
        if limit is not None and size >= limit:
            break
    return SEPARATOR.join(texts).encode()[:limit].decode(errors="ignore")
