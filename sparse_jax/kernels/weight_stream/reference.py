"""The products event by event, in NumPy: slow, and meant to be read.

Every column of a PE row takes commands from its own queue: the non-zeros that lie in
its slice and every end of row, in the order of the stream. What happens next is the
earliest event of a heap. Signatures and results are those of `kernel`.
"""

import heapq
from collections import deque
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Bool, Float, Int

from sparse_jax.kernels.weight_stream.costs import (
    COMPUTE,
    ROW,
    STALL,
    TRIGGER,
    Costs,
    slice_bounds,
)

READY, HANDED, REDUCED = range(3)
"""A column may take a command, has handed its sum on, and a row is reduced."""


def forward(
    x_TI: Float[np.ndarray, "T I"],
    w_OI: Float[np.ndarray, "O I"],
    mask_OI: Bool[np.ndarray, "O I"],
    *,
    columns: int,
    costs: Sequence[Costs],
) -> tuple[Float[np.ndarray, "T O"], Int[np.ndarray, "R C 4"]]:
    """Y = X W^T over the kept weights, see `kernel.forward`."""
    y_TO = np.zeros((len(x_TI), len(w_OI)))
    cycles_RC4 = np.zeros((len(costs), columns, 4), np.int64)
    rows = slice_bounds(len(x_TI), len(costs))
    for r, cost in enumerate(costs):
        x_LI, y_LO = x_TI[rows[r] : rows[r + 1]], y_TO[rows[r] : rows[r + 1]]
        sums = {}

        def axpy(c, o, i, x_LI=x_LI, sums=sums):
            sums[o, c] = sums.get((o, c), 0.0) + w_OI[o, i] * x_LI[:, i]

        def reduce(o, y_LO=y_LO, sums=sums):
            for c in range(columns):
                y_LO[:, o] += sums.pop((o, c), 0.0)

        cycles_RC4[r] = _pe_row(mask_OI, columns, cost, axpy, reduce)
    return y_TO, cycles_RC4


def input_gradient(
    dy_TO: Float[np.ndarray, "T O"],
    w_OI: Float[np.ndarray, "O I"],
    mask_OI: Bool[np.ndarray, "O I"],
    *,
    columns: int,
    costs: Sequence[Costs],
) -> tuple[Float[np.ndarray, "T I"], Int[np.ndarray, "R C 4"]]:
    """dX = dY W over the kept weights, see `kernel.input_gradient`."""
    return forward(dy_TO, w_OI.T, mask_OI.T, columns=columns, costs=costs)


def weight_gradient(
    x_TI: Float[np.ndarray, "T I"],
    dy_TO: Float[np.ndarray, "T O"],
    mask_OI: Bool[np.ndarray, "O I"],
    *,
    columns: int,
    costs: Sequence[Costs],
) -> tuple[Float[np.ndarray, "O I"], Int[np.ndarray, "R C 4"]]:
    """dW = dY^T X at the kept weights, see `kernel.weight_gradient`."""
    dw_OI = np.zeros(mask_OI.shape)
    cycles_RC4 = np.zeros((len(costs), columns, 4), np.int64)
    rows = slice_bounds(len(x_TI), len(costs))
    for r, cost in enumerate(costs):
        x_LI, dy_LO = x_TI[rows[r] : rows[r + 1]], dy_TO[rows[r] : rows[r + 1]]

        def dot(_, o, i, x_LI=x_LI, dy_LO=dy_LO):
            dw_OI[o, i] += dy_LO[:, o] @ x_LI[:, i]

        cycles_RC4[r] = _pe_row(mask_OI, columns, cost, dot, lambda _: None)
    return dw_OI, cycles_RC4


def _pe_row(
    mask_OI: Bool[np.ndarray, "O I"],
    columns: int,
    cost: Costs,
    on_weight: Callable[[int, int, int], None],
    on_reduced: Callable[[int], None],
) -> Int[np.ndarray, "C 4"]:
    """Cycles of the elements of one PE row; calls back (c, o, i) and (o)."""
    queues = _queues(mask_OI, columns)
    cycles_C4 = np.zeros((columns, 4), np.int64)
    current = [-1] * columns  # row that a column has begun
    handed = [0] * len(mask_OI)  # sums of a row that have arrived
    reduced: set[int] = set()
    waiting: dict[int, int] = {}  # column -> since when
    free = [0] * columns  # when a column ended its last command
    now = 0
    events = [(0, READY, c) for c in range(columns)]
    while events:
        now, kind, subject = heapq.heappop(events)
        if kind == REDUCED:
            on_reduced(subject)
            reduced.add(subject)
            for c, since in waiting.items():
                cycles_C4[c, STALL] += now - since
                heapq.heappush(events, (now, READY, c))
            waiting.clear()
        elif kind == HANDED:
            handed[subject] += 1
            if handed[subject] == columns:
                heapq.heappush(events, (now + cost.reduction, REDUCED, subject))
        elif queues[subject]:
            c, (o, i) = subject, queues[subject][0]
            if current[c] != o and not _may_begin(o, cost.rows_in_flight, reduced):
                waiting[c] = now
                continue
            current[c] = o
            queues[c].popleft()
            if i is None:
                cycles_C4[c, ROW] += cost.row
                free[c] = now + cost.row
                heapq.heappush(events, (free[c], HANDED, o))
            else:
                on_weight(c, o, i)
                cycles_C4[c, COMPUTE] += cost.compute
                cycles_C4[c, TRIGGER] += cost.trigger
                free[c] = now + cost.compute + cost.trigger
            heapq.heappush(events, (free[c], READY, c))
    cycles_C4[:, STALL] += now - np.array(free)
    return cycles_C4


def _queues(
    mask_OI: Bool[np.ndarray, "O I"], columns: int
) -> list[deque[tuple[int, int | None]]]:
    """Commands of each column: (o, i) is a non-zero, (o, None) ends a row."""
    bounds = slice_bounds(mask_OI.shape[1], columns)
    queues: list[deque[tuple[int, int | None]]] = [deque() for _ in range(columns)]
    for o, mask_I in enumerate(mask_OI):
        for c in range(columns):
            for i in range(bounds[c], bounds[c + 1]):
                if mask_I[i]:
                    queues[c].append((o, i))
            queues[c].append((o, None))
    return queues


def _may_begin(o: int, rows_in_flight: int | None, reduced: set[int]) -> bool:
    """Whether row o finds room for its partial sum."""
    if rows_in_flight is None or o < rows_in_flight:
        return True
    return o - rows_in_flight in reduced
