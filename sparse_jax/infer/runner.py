"""The compiled functions applied to a model, and the time that compiling them took."""

import time
from collections.abc import Hashable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Int32

from sparse_jax.infer.sample import Settings, sample
from sparse_jax.infer.steps import bucket_for, prefill, step
from sparse_jax.io import PackedModel
from sparse_jax.models.cache import Cache

Tokens = Int[Array | np.ndarray, " B"]


class Runner:
    """Reads and chooses tokens.

    Attributes:
      model: what is run.
      compile_seconds: spent on compilation so far, to be left out of rates.
    """

    def __init__(self, model: PackedModel):
        """Compiles nothing yet."""
        self.model = model
        self.compile_seconds = 0.0
        self._called: set[Hashable] = set()

    def read(
        self, cache: Cache, prompts: Sequence[Sequence[int]], settings: Settings
    ) -> tuple[Int32[Array, " B"], Cache]:
        """Reads prompts behind what the rows of a cache hold, bucket by bucket.

        Args:
          cache: with room for all; donated.
          prompts: new tokens of each row; none for a row that is only padding.
          settings: see `sample.stack`.

        Returns:
          The token after each prompt, and the cache.
        """
        lengths = np.array([len(ids) for ids in prompts], np.int32)
        ends_B = np.asarray(cache.lengths) + lengths
        logits_BV, start = None, 0
        while start < lengths.max():
            size = bucket_for(int(lengths.max()) - start)
            tokens_BT = np.zeros((len(prompts), size), np.int32)
            counts_B = np.clip(lengths - start, 0, size)
            for row, ids in enumerate(prompts):
                tokens_BT[row, : counts_B[row]] = ids[start : start + size]
            ended_BV = logits_BV
            logits_BV, cache = self._call(
                prefill, cache, tokens_BT, counts_B, ends_B, shape=tokens_BT.shape
            )
            if ended_BV is not None:  # rows whose prompt ended in an earlier piece
                logits_BV = jnp.where(counts_B[:, None] > 0, logits_BV, ended_BV)
            start += size
        assert logits_BV is not None
        return self._sample(logits_BV, settings, cache), cache

    def step(
        self, cache: Cache, tokens_B: Tokens, counts_B: Tokens, settings: Settings
    ) -> tuple[Int32[Array, " B"], Cache]:
        """Reads one token of every row and chooses the next.

        Args:
          cache: what was read before; donated.
          tokens_B: one token of each row.
          counts_B: 1, or 0 for a row that stays as it is.
          settings: see `sample.stack`.
        """
        logits_BV, cache = self._call(
            step, cache, tokens_B, counts_B, shape=tokens_B.shape
        )
        return self._sample(logits_BV, settings, cache), cache

    def _sample(self, logits_BV: Array, settings: Settings, cache: Cache) -> Array:
        key = logits_BV.shape, bool(settings)
        return self.call(sample, key, logits_BV, settings, cache.lengths)

    def _call(
        self, function: Any, cache: Cache, *args: Any, shape: tuple[int, ...]
    ) -> tuple[Array, Cache]:
        params, config = self.model.params, self.model.config
        key = *shape, cache.capacity
        return self.call(function, key, params, cache, *args, config)

    def call(self, function: Any, key: Hashable, *args: Any) -> Any:
        """Calls a jitted function; compiles it apart where the key is new.

        Args:
          function: made by `jax.jit`.
          key: of the arguments: what it is compiled for.
          *args: the arguments.
        """
        if (function, key) not in self._called:
            self._called.add((function, key))
            started = time.perf_counter()
            function.lower(*args).compile()  # kept for the call
            self.compile_seconds += time.perf_counter() - started
        return function(*args)
