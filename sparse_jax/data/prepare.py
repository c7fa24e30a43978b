"""`prepare`: from a config to data that is cheap to use.

It reads, trains or loads the tokenizer, tokenises and caches.
"""

import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sparse_jax.data import bpe
from sparse_jax.data.config import DataConfig, default_cache_dir
from sparse_jax.data.example_store import ExampleStore, build_examples
from sparse_jax.data.mixture import Dataset, document_seed
from sparse_jax.data.sources import source_shards
from sparse_jax.data.store import Store, build_store
from sparse_jax.data.tasks import find_task
from sparse_jax.data.tokenizer import Tokenizer, load_tokenizer
from sparse_jax.types import InputError


def prepare(config: DataConfig, *, progress: bool = True) -> Dataset:
    """Reads, tokenises and caches the data of a run.

    Args:
      config: what to read.
      progress: show progress bars if there is a terminal (pass False on all processes
        but the first).

    Raises:
      InputError: data that cannot be read, a bad tokenizer, or an unwritable cache.

    Example:
      >>> dataset = prepare(DataConfig(vocab_size=512))
      >>> dataset.domains
      ('code', 'prose')
      >>> next(dataset.batches(batch_size=8, seq_len=64, seed=0)).tokens.shape
      (8, 64)
    """
    cache_dir = Path(config.cache_dir) if config.cache_dir else default_cache_dir()
    shards = {name: source_shards(source) for name, source in config.sources.items()}
    if config.tokenizer == "bpe":
        texts = {n: s for n, s in config.sources.items() if s.task is None}
        if not texts:
            raise InputError(
                f"sources {[*config.sources]} are of tasks, on which no tokenizer is "
                "trained: set data.tokenizer to the model's"
            )
        weights = {name: source.weight for name, source in texts.items()}
        documents = {name: shards[name] for name in texts}
        size = config.vocab_size
        tokenizer = bpe.trained_tokenizer(documents, weights, size, cache_dir)
    else:
        tokenizer = load_tokenizer(config.tokenizer)
    options = {"cache_dir": cache_dir, "progress": progress}
    stores: dict[str, Store | ExampleStore] = {}
    for name, source in config.sources.items():
        if source.task is None:
            stores[name] = build_store(shards[name], tokenizer, name=name, **options)
            continue
        stores[name] = build_examples(
            shards[name],
            tokenizer,
            template=source.template or find_task(source.task).template,
            too_long=source.too_long,
            seed=document_seed(config, name),
            name=name,
            **options,
        )
    fingerprint = _fingerprint(config, tokenizer, stores)
    return Dataset(config, tokenizer, stores, fingerprint)


def _fingerprint(
    config: DataConfig, tokenizer: Tokenizer, stores: Mapping[str, Store | ExampleStore]
) -> dict[str, Any]:
    sources, corpus = {}, None
    for name, store in stores.items():
        source, meta = config.sources[name], store.meta
        limit = config.heldout_limit
        sources[name] = {
            "path": source.path,
            "weight": source.weight,
            "sha256": meta["sha256"],
        }
        if isinstance(store, ExampleStore):
            counts = store.heldout.first(limit).counts()
            sources[name] |= {"train": meta["train"], "heldout": counts}
            sources[name] |= {"task": source.task, "skipped": meta["skipped"]}
        else:
            counts = store.heldout_counts(tokenizer, limit)
            train = meta["train"] | {"tokens": meta["tokens"]}
            sources[name] |= {"train": train, "heldout": counts}
            corpus = corpus or meta["corpus"]
    return {
        "python": platform.python_version(),
        "tokenizer": {
            "path": config.tokenizer,
            "sha256": tokenizer.fingerprint,
            "vocab_size": tokenizer.vocab_size,
        },
        "corpus": corpus,
        "sources": sources,
    }
