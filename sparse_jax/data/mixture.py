"""The training data of a run: sources mixed by weight, and their held-out text.

`prepare` reads, trains or loads the tokenizer, tokenises and caches; the `Dataset` it
returns is cheap to use. Batch s of a seed is the same whatever the number of processes
and wherever a run was started again.
"""

import hashlib
import platform
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Int32

from sparse_jax.data import bpe, packing
from sparse_jax.data.config import DataConfig, default_cache_dir
from sparse_jax.data.packing import Stream
from sparse_jax.data.sources import source_shards
from sparse_jax.data.store import Store, build_store
from sparse_jax.data.tokenizer import Tokenizer, load_tokenizer
from sparse_jax.types import Batch, InputError

if TYPE_CHECKING:  # half a second and 40 MB that only the mixture itself needs
    import grain

_BATCH_DTYPES = (np.int32, np.int32, np.float32, np.int32, np.int32)


class Dataset:
    """Prepared data; made by `prepare`.

    Attributes:
      config: what it was made from.
      tokenizer: of all sources.
      domains: the sources' names, in the order of the config.
      fingerprint: JSON-able: `python` version, `tokenizer` (path, sha256, vocab_size),
        `corpus` (of the embedded corpus, None if it is not used) and `sources`: per
        domain `path`, `weight`, `sha256`, `train` and `heldout` (documents, bytes,
        tokens).
    """

    def __init__(
        self, config: DataConfig, tokenizer: Tokenizer, stores: Mapping[str, Store]
    ) -> None:
        self.config = config
        self.tokenizer = tokenizer
        self.domains = tuple(stores)
        self._stores = dict(stores)
        self._streams: dict[str, Stream] = {
            name: packing.make_stream(
                store.tokens, store.lengths, _seed(config.seed, name, "documents")
            )
            for name, store in stores.items()
        }
        self.fingerprint = self._fingerprint()

    def batches(
        self,
        *,
        batch_size: int,
        seq_len: int,
        seed: int,
        start_step: int = 0,
        process_index: int = 0,
        process_count: int = 1,
    ) -> Iterator[Batch]:
        """Training batches without end; numpy arrays, built by a thread ahead of use.

        Batch s is a pure function of (seed, s): starting at `start_step` gives what
        never stopping would have given. Of a batch of B rows, process p of n gets rows
        [p B/n, (p+1) B/n): the processes' arrays, concatenated in their order, are the
        batch of one process.

        Every source is walked in a new random order of its rows each epoch; rows of
        different sources alternate so that any stretch holds them in proportion to
        their weights (to about 1 %).

        Args:
          batch_size: B, rows over all processes.
          seq_len: T, tokens in a row.
          seed: of the order of rows.
          start_step: the first batch.
          process_index: p, this process.
          process_count: n, all processes.

        Raises:
          InputError: B does not divide by n, or a source is shorter than a row.
        """
        if batch_size < 1 or batch_size % process_count:
            raise InputError(
                f"batch_size {batch_size} must be a positive multiple of the "
                f"{process_count} processes: change batch_size"
            )
        if not 0 <= process_index < process_count:
            raise InputError(
                f"process_index must be in [0, {process_count}), got {process_index}"
            )
        import grain

        local = batch_size // process_count
        first = start_step * process_count + process_index
        # drop_remainder: grain rounds the length of endless data up past 64 bits else.
        dataset = self._rows(seq_len, seed).batch(local, drop_remainder=True)
        dataset = dataset[first::process_count].map(
            lambda rows: self._assemble(rows, seq_len)
        )
        # One thread is far faster than a training step, and leaves the cores to it.
        options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=4)
        return iter(dataset.to_iter_dataset(options))

    def heldout(
        self, domain: str
    ) -> tuple[Int32[np.ndarray, " n"], Int32[np.ndarray, " n"]]:
        r"""A domain's held-out documents, joined with "\n\n", as one stream of tokens.

        Returns:
          ids int32 [n], without special tokens, and nbytes int32 [n], the UTF-8 bytes
          that each stands for.

        Raises:
          InputError: an unknown domain, or nothing is held out.
        """
        if domain not in self._stores:
            raise InputError(
                f"{domain!r} is not a domain of this data: choose one of "
                f"{list(self.domains)}"
            )
        store = self._stores[domain]
        if not store.meta["heldout"]["documents"]:
            raise InputError(
                f"source {domain} ({self.config.sources[domain].path}) holds out no "
                f"document of its {store.meta['train']['documents']}: set heldout to "
                "held-out files, or raise heldout_fraction"
            )
        return store.heldout(self.tokenizer, self.config.heldout_limit)

    def calibration(
        self, count: int, length: int, seed: int
    ) -> Int32[np.ndarray, "count length"]:
        """Token rows for pruning, from training text only, mixed by weight.

        Raises:
          InputError: the training text is shorter than one row.
        """
        if count < 1:
            raise InputError(f"calibration needs at least 1 row, got count {count}")
        rows: Any = self._rows(length, _seed(seed, "", "calibration")).batch(
            count, drop_remainder=True
        )[0]
        return np.asarray(self._assemble(rows, length).tokens)

    def _rows(self, seq_len: int, seed: int) -> "grain.MapDataset":
        """The endless mixture as (number of the source, number of its row)."""
        import grain

        if seq_len < 1:
            raise InputError(f"seq_len must be at least 1, got {seq_len}")
        parts = []
        for number, (name, stream) in enumerate(self._streams.items()):
            count = stream.num_rows(seq_len)
            if count < 1:
                raise InputError(
                    f"source {name} ({self.config.sources[name].path}) has "
                    f"{len(stream.tokens)} training tokens, fewer than one row of "
                    f"{seq_len} + 1: shorten seq_len, or add text"
                )
            rows = grain.MapDataset.range(count).seed(_seed(seed, name, "rows"))
            rows = rows.shuffle().repeat(None)
            parts.append(rows.map(lambda row, number=number: (number, row)))
        weights = [self.config.sources[name].weight for name in self._streams]
        return grain.MapDataset.mix(parts, weights)

    def _assemble(self, rows: tuple[np.ndarray, np.ndarray], seq_len: int) -> Batch:
        source_B, row_B = rows
        batch = Batch(
            *(np.empty((len(row_B), seq_len), dtype) for dtype in _BATCH_DTYPES)
        )
        for number, stream in enumerate(self._streams.values()):
            (places,) = np.nonzero(source_B == number)
            if places.size:
                part = packing.pack_rows(
                    stream,
                    row_B[places],
                    seq_len=seq_len,
                    isolate_documents=self.config.isolate_documents,
                )
                for whole, some in zip(batch, part, strict=True):
                    whole[places] = some
        return batch

    def _fingerprint(self) -> dict[str, Any]:
        sources, corpus = {}, None
        for name, store in self._stores.items():
            source, meta = self.config.sources[name], store.meta
            heldout = {"documents": 0, "bytes": 0, "tokens": 0}
            if meta["heldout"]["documents"]:
                limit = self.config.heldout_limit
                ids, nbytes = store.heldout(self.tokenizer, limit)
                heldout = {
                    "documents": len(store.heldout_documents(limit)),
                    "bytes": int(nbytes.sum()),
                    "tokens": len(ids),
                }
            sources[name] = {
                "path": source.path,
                "weight": source.weight,
                "sha256": meta["sha256"],
                "train": meta["train"] | {"tokens": meta["tokens"]},
                "heldout": heldout,
            }
            corpus = corpus or meta["corpus"]
        return {
            "python": platform.python_version(),
            "tokenizer": {
                "path": self.config.tokenizer,
                "sha256": self.tokenizer.fingerprint,
                "vocab_size": self.tokenizer.vocab_size,
            },
            "corpus": corpus,
            "sources": sources,
        }


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
        weights = {name: source.weight for name, source in config.sources.items()}
        tokenizer = bpe.trained_tokenizer(shards, weights, config.vocab_size, cache_dir)
    else:
        tokenizer = load_tokenizer(config.tokenizer)
    stores = {
        name: build_store(
            shards[name], tokenizer, cache_dir, name=name, progress=progress
        )
        for name in config.sources
    }
    return Dataset(config, tokenizer, stores)


def _seed(seed: int, name: str, purpose: str) -> int:
    """A 32-bit seed of its own for every source and purpose."""
    digest = hashlib.sha256(f"{seed}:{name}:{purpose}".encode()).digest()
    return int.from_bytes(digest[:4], "little")
