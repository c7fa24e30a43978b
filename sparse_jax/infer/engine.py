"""Text from a packed model."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import jax
import numpy as np

from sparse_jax.infer import batch
from sparse_jax.infer.load import load_model
from sparse_jax.infer.request import (
    Clock,
    Completion,
    Prompt,
    Rates,
    Request,
    Token,
    cut,
    end_of,
    make_request,
)
from sparse_jax.infer.runner import Runner
from sparse_jax.infer.sample import Sampling, Settings, stack
from sparse_jax.infer.text import TextStream
from sparse_jax.io import PackedModel
from sparse_jax.models import cache as caches
from sparse_jax.models.cache import Cache
from sparse_jax.types import InputError


class Engine:
    """Generates text from a packed model.

    A conversation is a prompt that grows: of a prompt that begins like what was read
    and written last, only the rest is read.

    Attributes:
      model: what is generated from.
      cache: keys and values of what `stream` read and wrote last.
      rates: of the last call.

    Example:
      >>> from sparse_jax.infer import random_model
      >>> from sparse_jax.models import LlamaConfig
      >>> config = LlamaConfig(
      ...     vocab_size=20, d_model=8, d_ff=8, n_layers=1, n_heads=1)
      >>> engine = Engine(random_model(config, "dense_float32"))
      >>> len([token.id for token in engine.stream([1, 5, 3], max_tokens=4)]) <= 4
      True
    """

    def __init__(self, model: PackedModel):
        """Takes a model; see also `load`."""
        self.model = model
        self.cache: Cache | None = None
        self.rates = Rates()
        self._runner = Runner(model)
        self._held: list[int] = []  # tokens at the beginning of the cache
        self._turn = 0  # number of the stream that the cache belongs to
        self._one = jax.device_put(np.ones(1, np.int32))

    @classmethod
    def load(cls, path: str | Path) -> "Engine":
        """Loads a packed file or a model's directory; see `load_model`."""
        return cls(load_model(path))

    def stream(
        self,
        prompt: Prompt,
        *,
        max_tokens: int = 128,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        seed: int = 0,
    ) -> Iterator[Token]:
        """Continues one prompt, token by token.

        Args:
          prompt: text, before which the tokenizer's first token is put; or ids.
          max_tokens: the most that are written; fewer where the context ends.
          temperature: see `Sampling`, as for the following.
          top_k: only the k likeliest tokens.
          top_p: only the likeliest tokens of this probability.
          seed: of the random numbers.

        Returns:
          The tokens, as they are written; the last may be the end of sequence.

        Raises:
          InputError: at once: the prompt is longer than the context, empty, or text for
            a model without a tokenizer; or a setting is out of range.
        """
        sampling = Sampling(
            temperature=temperature, top_k=top_k, top_p=top_p, seed=seed
        )
        return self._stream(make_request(self.model, prompt, max_tokens, sampling))

    def generate(
        self,
        prompts: Sequence[Prompt],
        *,
        batch_size: int = 16,
        max_tokens: int = 128,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        seed: int = 0,
        stop: Sequence[str] = (),
        progress: Callable[[int], object] | None = None,
    ) -> list[Completion]:
        """Continues many prompts together, as `stream` would each of them.

        Args:
          prompts: see `stream`.
          batch_size: the most that are worked on at a time.
          max_tokens: as of `stream`.
          temperature: as of `stream`.
          top_k: as of `stream`.
          top_p: as of `stream`.
          seed: of the first prompt; the next one has the next seed.
          stop: texts that end a continuation early, and are no part of it.
          progress: told again and again how many more prompts are done.

        Raises:
          InputError: see `stream`; or there is no prompt, a stop text is empty, or
            there are stop texts for a model without a tokenizer.
        """
        if not prompts or batch_size < 1:
            raise InputError(
                f"expected at least one prompt and batch_size >= 1, found "
                f"{len(prompts)} prompts and {batch_size}"
            )
        first = Sampling(temperature=temperature, top_k=top_k, top_p=top_p, seed=seed)
        requests = []
        for number, prompt in enumerate(prompts):
            sampling = dataclasses.replace(first, seed=(seed + number) % 2**32)
            requests.append(
                make_request(self.model, prompt, max_tokens, sampling, stop)
            )
        written, self.rates = batch.run(self._runner, requests, batch_size, progress)
        return list(map(self._completion, requests, written))

    def forget(self) -> None:
        """Frees the cache; the next prompt is read from its beginning."""
        self.cache, self._held = None, []

    def _completion(self, request: Request, ids: list[int]) -> Completion:
        writer = _Writer(self.model, request)
        whole = "".join(
            writer.write(i, k == len(ids)).text for k, i in enumerate(ids, 1)
        )
        text = cut(whole, request.stop)
        stopped = ids[-1] == end_of(self.model) or len(text) < len(whole)
        return Completion(
            text=text,
            ids=tuple(ids),
            prompt_tokens=len(request.ids),
            finish="stop" if stopped else "length",
        )

    def _stream(self, request: Request) -> Iterator[Token]:
        settings = stack([request.sampling])
        writer = _Writer(self.model, request)
        self.rates = rates = Rates()
        self._turn += 1
        turn = self._turn
        cache, reused = self._reuse(request)
        clock, compiled = Clock(self._runner), self._runner.compile_seconds
        new = request.ids[reused:]
        token_B, self.cache = self._runner.read(cache, [new], settings)
        self._held = list(request.ids)
        jax.block_until_ready(token_B)
        rates.prompt_tokens, rates.prompt_seconds = len(new), clock.lap()
        for number in range(1, request.max_tokens + 1):
            following_B = token_B
            last = number == request.max_tokens
            if turn != self._turn:
                raise InputError(
                    "the engine has begun another stream, which took over the cache; "
                    "take all tokens of one first, or generate from several prompts"
                )
            if not last:
                # Starts before the token is known here, so that the processor never
                # waits for Python. After an end of sequence it is in vain.
                following_B = self._step(token_B, settings)
            token = int(np.asarray(token_B)[0])
            rates.tokens, rates.seconds = number - 1, rates.seconds + clock.lap()
            rates.compile_seconds = self._runner.compile_seconds - compiled
            if not last:
                self._held.append(token)
            last = last or token == end_of(self.model)
            yield writer.write(token, last)
            if last:
                return
            token_B = following_B

    def _reuse(self, request: Request) -> tuple[Cache, int]:
        """A cache with room for a request, and how much of its prompt is in there."""
        config, ids = self.model.config, request.ids
        capacity = caches.capacity_for(request.length, config)
        cache, self.cache = self.cache, None  # it is donated
        reused = 0
        if cache is None:
            cache = caches.empty(config, 1, capacity)
        else:
            cache = caches.grow(cache, capacity)
            reused = _common(self._held, ids[:-1])
        if config.rope.kind == "dynamic" and request.length > config.max_seq_len:
            reused = 0  # keys were turned by another length
        return caches.with_lengths(cache, np.array([reused])), reused

    def _step(self, token_B: jax.Array, settings: Settings) -> jax.Array:
        cache, self.cache = self.cache, None  # it is donated
        assert cache is not None  # `_stream` has filled it
        token_B, self.cache = self._runner.step(cache, token_B, self._one, settings)
        return token_B


class _Writer:
    """Makes tokens of ids."""

    def __init__(self, model: PackedModel, request: Request):
        self._end = end_of(model)
        self._text = None
        if model.tokenizer is not None:
            self._text = TextStream(model.tokenizer, request.ids)

    def write(self, token: int, last: bool) -> Token:
        if self._text is None:
            return Token(id=token, text="")
        text = "" if token == self._end else self._text.push(token)
        return Token(id=token, text=text + self._text.flush() if last else text)


def _common(held: Sequence[int], ids: Sequence[int]) -> int:
    """How many tokens two sequences have in common at their beginning."""
    pairs = zip(held, ids, strict=False)
    return next(
        (n for n, (a, b) in enumerate(pairs) if a != b), min(len(held), len(ids))
    )
