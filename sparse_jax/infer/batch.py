"""Requests of different lengths worked on together.

Each slot of a batch holds one request. A finished one leaves its slot to the next that
waits; when none wait and half the slots are empty, the batch becomes half as large.
Rows do not see each other, so that what is written does not depend on the company, up
to rounding.
"""

from collections import deque
from collections.abc import Callable, Sequence

import numpy as np

from sparse_jax.infer.request import Clock, Rates, Request, end_of
from sparse_jax.infer.runner import Runner
from sparse_jax.infer.sample import Sampling, Settings, stack
from sparse_jax.infer.text import TextStream
from sparse_jax.io import PackedModel
from sparse_jax.models import cache as caches
from sparse_jax.models.cache import Cache


def run(
    runner: Runner,
    requests: Sequence[Request],
    size: int,
    progress: Callable[[int], object] | None = None,
) -> tuple[list[list[int]], Rates]:
    """Writes the continuation of every request.

    Args:
      runner: what writes.
      requests: at least one.
      size: the most that are worked on together.
      progress: told how many requests have been finished since it was last told.

    Returns:
      The tokens written for each request, an end of sequence included; and the rates.
    """
    batch = _Batch(runner, requests, size)
    rates, compiled, finished = Rates(), runner.compile_seconds, 0
    while batch.busy:
        clock = Clock(runner)
        rates.prompt_tokens += batch.admit()
        rates.prompt_seconds += clock.lap()
        rates.tokens += batch.advance()
        rates.seconds += clock.lap()
        if progress is not None:
            finished, before = len(requests) - batch.unfinished, finished
            progress(finished - before)
    rates.compile_seconds = runner.compile_seconds - compiled
    return batch.written, rates


class StopWatch:
    """Looks for the stop texts of a request in what is written."""

    def __init__(self, model: PackedModel, request: Request):
        """Starts behind the prompt; the model has a tokenizer."""
        assert model.tokenizer is not None  # `make_request` has seen to it
        self._stop = request.stop
        self._stream = TextStream(model.tokenizer, request.ids)
        self._tail = ""

    def sees(self, token: int) -> bool:
        """Whether the text holds a stop text, now that a token has been added."""
        self._tail += self._stream.push(token)
        found = any(end in self._tail for end in self._stop)
        # One that the next token completes begins at most so far back.
        self._tail = self._tail[-max(map(len, self._stop)) :]
        return found


class _Batch:
    """The slots, the cache whose rows they are, and the requests that wait."""

    def __init__(self, runner: Runner, requests: Sequence[Request], size: int):
        self.written: list[list[int]] = [[] for _ in requests]
        self._runner, self._requests = runner, requests
        self._config, self._end = runner.model.config, end_of(runner.model)
        self._waiting = deque(range(len(requests)))
        self._slots: list[int | None] = [None] * min(size, len(requests))
        longest = max(request.length for request in requests)
        self._capacity = caches.capacity_for(longest, self._config)
        self._cache = self._empty(len(self._slots))
        self._settings: Settings = {}
        self._watches = {
            number: StopWatch(runner.model, request)
            for number, request in enumerate(requests)
            if request.stop
        }

    @property
    def busy(self) -> bool:
        """Whether any request is not finished."""
        return self.unfinished > 0

    @property
    def unfinished(self) -> int:
        """Requests that wait or are worked on."""
        return len(self._waiting) + len(self._active())

    def admit(self) -> int:
        """Fills empty slots with requests that wait; returns the tokens read."""
        empty = [slot for slot, number in enumerate(self._slots) if number is None]
        group = [self._waiting.popleft() for _ in empty[: len(self._waiting)]]
        if not group:
            return 0
        rows = 1 << (len(group) - 1).bit_length()  # few sizes, few compilations
        prompts = [self._requests[number].ids for number in group]
        prompts += [()] * (rows - len(group))
        fresh = self._empty(rows)
        sampling = [self._requests[number].sampling for number in group]
        settings = stack(sampling + [Sampling()] * (rows - len(group)))
        first_B, fresh = self._runner.read(fresh, prompts, settings)
        # Padding goes nowhere.
        places = np.full(rows, len(self._slots), np.int32)
        places[: len(group)] = empty[: len(group)]
        key = rows, len(self._slots), self._capacity
        self._cache = self._runner.call(caches.put, key, self._cache, places, fresh)
        for slot, number, token in zip(empty, group, first_B.tolist(), strict=False):
            self._slots[slot] = number
            self._accept(slot, number, token)
        self._restack()
        return sum(map(len, prompts))

    def advance(self) -> int:
        """Writes one token of every request; returns how many that were."""
        self._shrink()
        active = self._active()
        if not active:
            return 0
        tokens_B, counts_B = np.zeros((2, len(self._slots)), np.int32)
        for slot, number in active.items():
            tokens_B[slot], counts_B[slot] = self.written[number][-1], 1
        chosen_B, self._cache = self._runner.step(
            self._cache, tokens_B, counts_B, self._settings
        )
        chosen = chosen_B.tolist()
        for slot, number in active.items():
            self._accept(slot, number, chosen[slot])
        return len(active)

    def _empty(self, rows: int) -> Cache:
        key = self._config, rows, self._capacity
        return self._runner.call(caches.empty, key, *key)

    def _active(self) -> dict[int, int]:
        """Slot -> the request that it holds."""
        return {slot: n for slot, n in enumerate(self._slots) if n is not None}

    def _accept(self, slot: int, number: int, token: int) -> None:
        self.written[number].append(token)
        allowed = self._requests[number].max_tokens
        watch = self._watches.get(number)
        stopped = token == self._end or (watch is not None and watch.sees(token))
        if stopped or len(self.written[number]) == allowed:
            self._slots[slot] = None

    def _shrink(self) -> None:
        """Halves the batch while half of it is empty and none wait."""
        active = [*self._active()]
        size = len(self._slots)
        while active and len(active) <= size // 2 and not self._waiting:
            size //= 2
        if size == len(self._slots):
            return
        idle = [slot for slot, number in enumerate(self._slots) if number is None]
        rows = (active + idle)[:size]
        self._cache = caches.take(self._cache, np.array(rows))
        self._slots = [self._slots[row] for row in rows]
        self._restack()

    def _restack(self) -> None:
        sampling = [
            Sampling() if number is None else self._requests[number].sampling
            for number in self._slots
        ]
        self._settings = stack(sampling)
