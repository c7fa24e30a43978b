"""Any data path as one stream of tokens, for evaluation."""

import numpy as np
from jaxtyping import Int32

from sparse_jax.data.sources import Format, find_shards
from sparse_jax.data.store import SEPARATOR
from sparse_jax.data.tokenizer import Tokenizer


def stream_from_path(
    path: str, tokenizer: Tokenizer, *, field: str = "text", format: Format = "auto"
) -> tuple[Int32[np.ndarray, " n"], Int32[np.ndarray, " n"]]:
    r"""Encodes all text under a path as one stream, without special tokens.

    Documents are joined with "\n\n"; a single text file is taken verbatim. Of the
    embedded corpus (`embedded:code`, `embedded:prose`) only the held-out documents
    are read.

    Args:
      path: see `SourceConfig.path`.
      tokenizer: of the model to evaluate.
      field: see `SourceConfig.field`.
      format: see `SourceConfig.format`.

    Returns:
      ids int32 [n], and nbytes int32 [n], the UTF-8 bytes that each stands for.

    Raises:
      InputError: nothing there, or nothing that can be read.
    """
    documents = (
        text
        for shard in find_shards(path, format, field)
        for split, text in shard.documents()
        if shard.format != "embedded" or split == "heldout"
    )
    return tokenizer.encode_with_bytes(SEPARATOR.join(documents))
