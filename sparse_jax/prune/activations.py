"""Calibration activations between two blocks, in memory or spooled to disk."""

import itertools
import pathlib
import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from sparse_jax.files import disk_errors
from sparse_jax.types import InputError

Batch = Float[Array, "_ T D"]


class Activations:
    """Batches of activations [_, T, D] that can be read again and again.

    On disk they take a folder of their own, which goes when the object does; of them
    only the batch in use is in memory. That is for a single process.

    Args:
      batches: read once, one at a time.
      spool: folder for the files; None keeps the batches in memory.
      samples: how many sequences count; None = all.

    Attributes:
      samples: how many sequences count, the first ones; what the last batch has beyond
        them fills it up.

    Raises:
      InputError: the disk is full or read-only, or several processes are to spool.

    Example:
      >>> x = Activations([jnp.ones((2, 3, 4))])
      >>> x.update(lambda x_BTD: 2 * x_BTD)
      >>> [float(x_BTD.sum()) for x_BTD in x]
      [48.0]
    """

    def __init__(
        self,
        batches: Iterable[Batch],
        spool: pathlib.Path | None = None,
        samples: int | None = None,
    ):
        self._folder = None
        if spool is not None and jax.process_count() > 1:
            raise InputError(
                f"spool: {jax.process_count()} processes share the activations, and "
                "only a single process can spool them; leave spool out"
            )
        if spool is not None:
            with disk_errors(spool):
                spool.mkdir(parents=True, exist_ok=True)
                self._folder = pathlib.Path(tempfile.mkdtemp(dir=spool, prefix="x-"))
            weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        self._batches: list[Any] = []  # or, spooled, their shapes and dtypes
        for x_BTD in batches:
            self._batches.append(self._store(len(self._batches), x_BTD))
        self.samples = sum(x.shape[0] for x in self._batches)
        if samples is not None:
            self.samples = samples

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[Batch]:
        return (self._load(index) for index in range(len(self)))

    def __getitem__(self, index: int) -> Batch:
        return self._load(index)

    def update(self, function: Callable[[Batch], Batch]) -> None:
        """Replaces every batch x by `function(x)`, one at a time."""
        for index in range(len(self)):
            # Dispatched ahead, all batches would hold their temporaries at once.
            new_BTD = jax.block_until_ready(function(self._load(index)))
            self._batches[index] = self._store(index, new_BTD)

    def _store(self, index: int, x_BTD: Batch) -> Batch | jax.ShapeDtypeStruct:
        if self._folder is None:
            return x_BTD
        with disk_errors(self._folder):
            np.asarray(x_BTD).tofile(self._folder / f"{index}.bin")
        return jax.ShapeDtypeStruct(x_BTD.shape, x_BTD.dtype, sharding=x_BTD.sharding)

    def _load(self, index: int) -> Batch:
        stored = self._batches[index]
        if self._folder is None:
            return stored
        data = np.fromfile(self._folder / f"{index}.bin", stored.dtype)
        if data.size != stored.size:
            raise InputError(
                f"{self._folder / f'{index}.bin'}: spooled activations are truncated; "
                "run the same command again"
            )
        data_BTD = data.reshape(stored.shape)
        if len(stored.sharding.device_set) == 1:
            return jnp.asarray(data_BTD)
        return jax.device_put(data_BTD, stored.sharding)


def in_batches(rows: np.ndarray, size: int) -> Iterator[np.ndarray]:
    """Cuts an array along axis 0 into pieces of `size` rows, the last one shorter.

    Example:
      >>> [piece.tolist() for piece in in_batches(np.arange(5), 2)]
      [[0, 1], [2, 3], [4]]
    """
    edges = [*range(0, len(rows), size), len(rows)]
    return (rows[start:stop] for start, stop in itertools.pairwise(edges))
