"""Training of a byte-level BPE tokenizer, for when there is none to take."""

import hashlib
import json
import os
import random
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import tokenizers

from sparse_jax.data.cached import writing
from sparse_jax.data.sources import Shard
from sparse_jax.data.tokenizer import JsonTokenizer, Tokenizer, load_tokenizer
from sparse_jax.types import InputError

END_OF_TEXT = "<|endoftext|>"
"""The one special token, id 0: both the beginning and the end of a document."""

_MIN_VOCAB_SIZE = 257  # every byte, and END_OF_TEXT

# Part of every cached tokenizer's name: raise it when a change here changes them.
_VERSION = 1
_SAMPLE_BYTES = 4_000_000  # more text changes a small vocabulary little
_MAX_SHARDS = 32  # of one source


def train_bpe(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Trains a byte-level BPE: lossless on any text, no unknown token.

    Words are split as GPT-2 does. The result is deterministic, and a valid tokenizer
    for transformers' `PreTrainedTokenizerFast`.

    Args:
      texts: training documents.
      vocab_size: ids wanted, END_OF_TEXT and the 256 bytes included; a small corpus
        may yield fewer.

    Raises:
      InputError: `vocab_size` below 257.

    Example:
      >>> tokenizer = train_bpe(["to be or not to be"] * 2, vocab_size=260)
      >>> tokenizer.decode(tokenizer.encode("to be, naïve"))
      'to be, naïve'
    """
    if vocab_size < _MIN_VOCAB_SIZE:
        raise InputError(
            f"vocab_size must be at least {_MIN_VOCAB_SIZE} (all bytes and one special "
            f"token) to train a BPE tokenizer, got {vocab_size}"
        )
    byte_level = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = byte_level
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(byte_level.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": END_OF_TEXT,
        "eos_token": END_OF_TEXT,
        "clean_up_tokenization_spaces": False,
    }
    return JsonTokenizer(
        {
            "tokenizer.json": tokenizer.to_str(pretty=True).encode(),
            "tokenizer_config.json": json.dumps(config, indent=2).encode(),
        }
    )


def trained_tokenizer(
    shards: Mapping[str, Sequence[Shard]],
    weights: Mapping[str, float],
    vocab_size: int,
    cache_dir: Path,
) -> Tokenizer:
    """A BPE tokenizer trained on a sample of the sources' training text, cached.

    Args:
      shards: the shards of each source.
      weights: each source's share of the sample.
      vocab_size: see `train_bpe`.
      cache_dir: where trained tokenizers are kept.

    Raises:
      InputError: unreadable data, an unwritable cache, a vocabulary too small.
    """
    identity = [_VERSION, vocab_size, sorted(weights.items())]
    identity += [shard.identity() for name in sorted(shards) for shard in shards[name]]
    key = hashlib.sha256(repr(identity).encode()).hexdigest()[:32]
    folder = cache_dir / "tokenizers" / key
    if not folder.exists():
        sample: list[str] = []
        for name in sorted(shards):
            share = weights[name] / sum(weights.values())
            sample += _sample(shards[name], int(share * _SAMPLE_BYTES))
        files = train_bpe(sample, vocab_size).files
        with writing(cache_dir):
            _write(folder, files)
    return load_tokenizer(folder)


def _sample(shards: Sequence[Shard], size: int) -> Iterator[str]:
    """About `size` characters of training text, from shards all over the source."""
    shards = [shard for shard in shards if shard.split != "heldout"]
    shards = shards[:: -(-len(shards) // _MAX_SHARDS)]
    for shard in shards:
        left = size // len(shards)
        texts: Iterable[str] = (t for split, t in shard.documents() if split == "train")
        if shard.format == "embedded":  # sorted by topic, and in memory anyway
            texts = list(texts)
            random.Random(0).shuffle(texts)
        for text in texts:
            yield text[:left]
            left -= len(text)
            if left <= 0:
                break


def _write(folder: Path, files: Mapping[str, bytes]) -> None:
    """Writes a directory so that it is there whole or not at all."""
    temporary = folder.with_suffix(f".{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    for name, content in files.items():
        (temporary / name).write_bytes(content)
    try:
        os.replace(temporary, folder)
    except OSError:
        shutil.rmtree(temporary, ignore_errors=True)
        if not folder.exists():  # or else another process was faster, with the same
            raise
