"""What to train and evaluate on, as plain data."""

import dataclasses
import os
from pathlib import Path

from sparse_jax.data.sources import SourceConfig
from sparse_jax.types import InputError


def _embedded() -> dict[str, SourceConfig]:
    return {
        "code": SourceConfig(path="embedded:code", weight=0.7),
        "prose": SourceConfig(path="embedded:prose", weight=0.3),
    }


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    """What to train and evaluate on.

    Attributes:
      sources: domain name -> source.
      tokenizer: "bpe" to train one on the sources, or the path of a tokenizer.json, a
        SentencePiece *.model or a directory with one.
      vocab_size: ids of a trained tokenizer; not used with a path.
      isolate_documents: keep attention and positions inside a document, and do not
        train on predicting the first token of the next.
      cache_dir: where tokenised text is kept; None: $SPARSE_JAX_CACHE, else
        $XDG_CACHE_HOME/sparse_jax, else ~/.cache/sparse_jax.
      seed: of the order in which documents are laid out.
      heldout_limit: at most so many bytes of held-out text per domain, cut between
        documents; None: all of it.
    """

    sources: dict[str, SourceConfig] = dataclasses.field(default_factory=_embedded)
    tokenizer: str = "bpe"
    vocab_size: int = 1024
    isolate_documents: bool = False
    cache_dir: str | None = None
    seed: int = 0
    heldout_limit: int | None = 8_000_000

    def __post_init__(self) -> None:
        if not self.sources:
            raise InputError("data.sources is empty: name at least one source")
        if self.heldout_limit is not None and self.heldout_limit < 1:
            raise InputError(
                f"data.heldout_limit must be positive or None, got {self.heldout_limit}"
            )


def default_cache_dir() -> Path:
    """Where `DataConfig.cache_dir=None` leads."""
    if own := os.environ.get("SPARSE_JAX_CACHE"):
        return Path(own)
    cache_home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache_home) / "sparse_jax"
