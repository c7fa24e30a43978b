"""Rows of fixed length filled with whole examples, for fine-tuning."""

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
from jaxtyping import Int, Shaped

from sparse_jax.types import Batch

PADDING = -1
"""Segment id of positions that hold no example."""

TooLong = Literal["drop", "truncate"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """Which examples stand in which row, for one length of rows.

    Attributes:
      order: [D] examples, row after row.
      bounds: [R + 1], where each row begins in `order`.
      counts: `examples` in all, of which `truncated` and `dropped`; and of all `rows`
        together `tokens` (positions that hold an example) and `response_tokens`.
    """

    order: Int[np.ndarray, " D"]
    bounds: Int[np.ndarray, " R_and_1"]
    counts: dict[str, int]


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Examples:
    """Tokenised examples, of which each position knows whether the model writes it.

    Attributes:
      tokens: [N] ids of all examples, one after another.
      response: bool [N], True where the loss counts.
      nbytes: [N], UTF-8 bytes that each token stands for.
      lengths: [D], tokens of each example.
      too_long: what happens to an example that a row cannot hold: "drop", or "truncate"
        its end, as long as some of its response is left.
      seed: of the order of the examples.
    """

    tokens: Shaped[np.ndarray, " N"]
    response: Shaped[np.ndarray, " N"]
    nbytes: Shaped[np.ndarray, " N"]
    lengths: Int[np.ndarray, " D"]
    too_long: TooLong = "drop"
    seed: int = 0

    def first(self, limit: int | None) -> "Examples":
        """The first examples of at most `limit` bytes, but at least one; None: all."""
        if limit is None or not len(self.lengths):
            return self
        ends = np.cumsum(self.lengths, dtype=np.int64)
        sizes = np.cumsum(self.nbytes, dtype=np.int64)[ends - 1]
        count = max(1, int(np.searchsorted(sizes, limit, side="right")))
        end = int(ends[count - 1])
        return dataclasses.replace(
            self,
            tokens=self.tokens[:end],
            response=self.response[:end],
            nbytes=self.nbytes[:end],
            lengths=self.lengths[:count],
        )

    def counts(self) -> dict[str, int]:
        """Examples as `documents`, their bytes and their tokens."""
        size = int(self.nbytes.sum(dtype=np.int64))
        documents = len(self.lengths)
        return {"documents": documents, "bytes": size, "tokens": len(self.tokens)}

    def num_rows(self, seq_len: int) -> int:
        """Rows that hold all examples once."""
        return len(self.plan(seq_len).bounds) - 1

    def plan(self, seq_len: int) -> Plan:
        """Puts every example into the fullest row that has room for it (best fit).

        An example of n tokens takes n - 1 positions: its last token is only a target.
        """
        if seq_len not in self._plans:
            self._plans[seq_len] = self._make_plan(seq_len)
        return self._plans[seq_len]

    def pack(
        self,
        index_B: Int[np.ndarray, " B"],
        *,
        seq_len: int,
        isolate_documents: bool = True,
    ) -> Batch:
        """Rows of examples, with padding at their ends.

        Tokens of a prompt and padding have loss weight 0. `segment_ids` counts the
        examples of a row from 0 and is `PADDING` behind them.

        Args:
          index_B: row numbers, below `num_rows(seq_len)`.
          seq_len: T.
          isolate_documents: positions restart at each example; without, they go on.

        Example:
          >>> examples = Examples(
          ...     tokens=np.array([5, 6, 7, 8, 9]), response=np.array([0, 0, 1, 0, 1]),
          ...     nbytes=np.ones(5, int), lengths=np.array([3, 2]))
          >>> row = examples.pack(np.array([0]), seq_len=4)
          >>> row.tokens, row.targets
          (array([[5, 6, 8, 0]], dtype=int32), array([[6, 7, 9, 0]], dtype=int32))
          >>> row.loss_weights, row.segment_ids
          (array([[0., 1., 1., 0.]], dtype=float32),
           array([[ 0,  0,  1, -1]], dtype=int32))
        """
        shape = len(index_B), seq_len
        tokens_BT, targets_BT, positions_BT = np.zeros((3, *shape), np.int32)
        weights_BT = np.zeros(shape, np.float32)
        segments_BT = np.full(shape, PADDING, np.int32)
        plan = self.plan(seq_len)
        for row, index in enumerate(index_B.tolist()):
            inside = plan.order[plan.bounds[index] : plan.bounds[index + 1]]
            begin = 0
            for segment, example in enumerate(inside.tolist()):
                place = self._place(example, seq_len)
                end = begin + place.stop - place.start - 1
                here = slice(begin, end)
                tokens_BT[row, here] = self.tokens[place][:-1]
                targets_BT[row, here] = self.tokens[place][1:]
                weights_BT[row, here] = self.response[place][1:]
                segments_BT[row, here] = segment
                first = 0 if isolate_documents else begin
                positions_BT[row, here] = np.arange(first, first + end - begin)
                begin = end
        return Batch(tokens_BT, targets_BT, weights_BT, segments_BT, positions_BT)

    def batches(self, batch_size: int, seq_len: int) -> Iterator[tuple[Batch, int]]:
        """All rows once, and the bytes of the responses in each batch.

        The last batch is filled with rows of padding.
        """
        rows = self.num_rows(seq_len)
        for start in range(0, rows, batch_size):
            index = np.arange(start, min(start + batch_size, rows))
            missing = batch_size - len(index)
            pairs = ((0, missing), (0, 0))
            batch = self.pack(index, seq_len=seq_len)
            filled = Batch(*(np.pad(array, pairs) for array in batch))
            filled.segment_ids[len(index) :] = PADDING
            yield filled, self._response_bytes(index, seq_len)

    def _response_bytes(self, index: np.ndarray, seq_len: int) -> int:
        plan, total = self.plan(seq_len), 0
        for row in index.tolist():
            for example in plan.order[plan.bounds[row] : plan.bounds[row + 1]].tolist():
                place = self._place(example, seq_len)
                written = self.response[place][1:] > 0
                total += int(self.nbytes[place][1:][written].sum())
        return total

    def _place(self, example: int, seq_len: int) -> slice:
        """Where an example, or what a row can hold of it, stands in `tokens`."""
        start = int(self._starts[example])
        return slice(start, start + min(int(self.lengths[example]), seq_len + 1))

    @functools.cached_property
    def _starts(self) -> np.ndarray:
        return np.cumsum(self.lengths, dtype=np.int64) - self.lengths

    @functools.cached_property
    def _plans(self) -> dict[int, Plan]:
        return {}

    def _make_plan(self, seq_len: int) -> Plan:
        too_long = self.lengths > seq_len + 1
        held = np.minimum(self.lengths, seq_len + 1)
        response = np.asarray(self.response)  # slices of a memory map are slow
        # The first token of an example is never predicted.
        places = zip(self._starts + 1, self._starts + held, strict=True)
        counted = (np.count_nonzero(response[first:end]) for first, end in places)
        written = np.fromiter(counted, np.int64, len(held))
        used = written > 0
        if self.too_long == "drop":
            used &= ~too_long
        chosen = np.flatnonzero(used)
        chosen = np.random.default_rng(self.seed).permutation(chosen)
        sizes = held[chosen] - 1
        order, bounds = _best_fit(chosen, sizes, seq_len)
        counts: dict[str, Any] = {
            "examples": len(self.lengths),
            "truncated": (used & too_long).sum(),
            "dropped": (~used).sum(),
            "rows": len(bounds) - 1,
            "tokens": sizes.sum(),
            "response_tokens": written[used].sum(),
        }
        counts = {name: int(value) for name, value in counts.items()}
        return Plan(order=order, bounds=bounds, counts=counts)


def _best_fit(
    examples: Int[np.ndarray, " D"], sizes: Int[np.ndarray, " D"], room: int
) -> tuple[Int[np.ndarray, " D"], Int[np.ndarray, " R_and_1"]]:
    """Examples in the order of their rows, and the rows' bounds."""
    rows: list[list[int]] = []
    with_room: list[list[int]] = [[] for _ in range(room + 1)]  # by positions left
    some = 0  # bit n: some row has n positions left
    for example, size in zip(examples.tolist(), sizes.tolist(), strict=True):
        enough = some >> size
        if enough:
            left = size + (enough & -enough).bit_length() - 1
            row = with_room[left].pop()
            if not with_room[left]:
                some &= ~(1 << left)
        else:
            left, row = room, len(rows)
            rows.append([])
        rows[row].append(example)
        with_room[left - size].append(row)
        some |= 1 << (left - size)
    bounds = np.cumsum([0, *map(len, rows)], dtype=np.int64)
    order = np.array([example for row in rows for example in row], np.int64)
    return order, bounds
