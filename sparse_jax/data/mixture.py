"""The training data of a run: sources mixed by weight, and their held-out text.

Batch s of a seed is the same whatever the number of processes and wherever a run was
started again.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Int32

from sparse_jax.data.config import DataConfig
from sparse_jax.data.example_packing import Examples
from sparse_jax.data.example_store import ExampleStore
from sparse_jax.data.packing import Stream, make_stream
from sparse_jax.data.store import Store
from sparse_jax.data.tokenizer import Tokenizer
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
        tokens), and of a task `task` and what was `skipped`.
    """

    def __init__(
        self,
        config: DataConfig,
        tokenizer: Tokenizer,
        stores: Mapping[str, Store | ExampleStore],
        fingerprint: dict[str, Any],
    ) -> None:
        self.config = config
        self.tokenizer = tokenizer
        self.domains = tuple(stores)
        self._stores = dict(stores)
        # What rows are cut from, and what calibration rows are: those have no padding.
        self._streams: dict[str, Stream] = {}
        self._rows_of: dict[str, Stream | Examples] = {}
        for name, store in stores.items():
            texts = store.train if isinstance(store, ExampleStore) else store
            seed = document_seed(config, name)
            self._streams[name] = make_stream(texts.tokens, texts.lengths, seed)
            whole = isinstance(texts, Examples)
            self._rows_of[name] = texts if whole else self._streams[name]
        self.fingerprint = fingerprint

    def batches(
        self,
        *,
        batch_size: int,
        seq_len: int,
        seed: int,
        start_step: int = 0,
        sources: Sequence[str] = (),
        isolate_documents: bool | None = None,
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
          sources: domains to take rows from; none = all.
          isolate_documents: None = as configured.
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
        if isolate_documents is None:
            isolate_documents = self.config.isolate_documents
        pool = {name: self._rows_of[name] for name in self._names(sources)}
        dataset = self._rows(pool, seq_len, seed).batch(local, drop_remainder=True)
        dataset = dataset[first::process_count].map(
            lambda rows: _assemble(pool, rows, seq_len, isolate_documents)
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
        store = self._held_out(domain)
        assert isinstance(store, Store), f"{domain} is a task"
        return store.heldout(self.tokenizer, self.config.heldout_limit)

    def heldout_examples(self, domain: str) -> Examples | None:
        """The held-out examples of a task; None of a domain of documents.

        Raises:
          InputError: an unknown domain, or nothing is held out.
        """
        store = self._held_out(domain)
        if isinstance(store, Store):
            return None
        return store.heldout.first(self.config.heldout_limit)

    def examples(self, domain: str) -> Examples | None:
        """The training examples of a task; None of a domain of documents."""
        found = self._rows_of[domain]
        return found if isinstance(found, Examples) else None

    def calibration(
        self, count: int, length: int, seed: int, sources: Sequence[str] = ()
    ) -> Int32[np.ndarray, "count length"]:
        """Token rows for pruning, from training text only, mixed by weight.

        Those of a task are cut from its examples, one after another, prompts and all.

        Raises:
          InputError: the training text is shorter than one row.
        """
        if count < 1:
            raise InputError(f"calibration needs at least 1 row, got count {count}")
        pool = {name: self._streams[name] for name in self._names(sources)}
        dataset = self._rows(pool, length, _seed(seed, "", "calibration"))
        rows: Any = dataset.batch(count, drop_remainder=True)[0]
        isolate = self.config.isolate_documents
        return np.asarray(_assemble(pool, rows, length, isolate).tokens)

    def _names(self, sources: Sequence[str]) -> tuple[str, ...]:
        """These sources, or all, in the order of the config."""
        for name in sources:
            self._store(name)
        return tuple(name for name in self.domains if not sources or name in sources)

    def _store(self, domain: str) -> Store | ExampleStore:
        if domain not in self._stores:
            raise InputError(
                f"{domain!r} is not a domain of this data: choose one of "
                f"{list(self.domains)}"
            )
        return self._stores[domain]

    def _held_out(self, domain: str) -> Store | ExampleStore:
        store = self._store(domain)
        if not store.meta["heldout"]["documents"]:
            raise InputError(
                f"source {domain} ({self.config.sources[domain].path}) holds out no "
                f"document of its {store.meta['train']['documents']}: set heldout to "
                "held-out files, or raise heldout_fraction"
            )
        return store

    def _rows(
        self, pool: Mapping[str, Stream | Examples], seq_len: int, seed: int
    ) -> "grain.MapDataset":
        """The endless mixture as (number of the source, number of its row)."""
        import grain

        if seq_len < 1:
            raise InputError(f"seq_len must be at least 1, got {seq_len}")
        parts = []
        for number, (name, stream) in enumerate(pool.items()):
            count = stream.num_rows(seq_len)
            if count < 1:
                raise self._too_short(name, stream, seq_len)
            rows = grain.MapDataset.range(count).seed(_seed(seed, name, "rows"))
            rows = rows.shuffle().repeat(None)
            parts.append(rows.map(lambda row, number=number: (number, row)))
        weights = [self.config.sources[name].weight for name in pool]
        return grain.MapDataset.mix(parts, weights)

    def _too_short(
        self, name: str, stream: Stream | Examples, seq_len: int
    ) -> InputError:
        where = f"source {name} ({self.config.sources[name].path})"
        if isinstance(stream, Examples):
            return InputError(
                f"{where}: none of its {len(stream.lengths)} training examples fits "
                f"into a row of {seq_len} tokens: raise seq_len, or set too_long to "
                "'truncate'"
            )
        return InputError(
            f"{where} has {len(stream.tokens)} training tokens, fewer than one row of "
            f"{seq_len} + 1: shorten seq_len, or add text"
        )


def document_seed(config: DataConfig, name: str) -> int:
    """Of the order in which a source's documents, or its examples, are laid out."""
    return _seed(config.seed, name, "documents")


def _assemble(
    pool: Mapping[str, Stream | Examples],
    rows: tuple[np.ndarray, np.ndarray],
    seq_len: int,
    isolate_documents: bool,
) -> Batch:
    """The batch of rows that are named by (number of the source, number of its row)."""
    source_B, row_B = rows
    batch = Batch(*(np.empty((len(row_B), seq_len), dtype) for dtype in _BATCH_DTYPES))
    for number, stream in enumerate(pool.values()):
        (places,) = np.nonzero(source_B == number)
        if places.size:
            part = stream.pack(
                row_B[places], seq_len=seq_len, isolate_documents=isolate_documents
            )
            for whole, some in zip(batch, part, strict=True):
                whole[places] = some
    return batch


def _seed(seed: int, name: str, purpose: str) -> int:
    """A 32-bit seed of its own for every source and purpose."""
    digest = hashlib.sha256(f"{seed}:{name}:{purpose}".encode()).digest()
    return int.from_bytes(digest[:4], "little")
