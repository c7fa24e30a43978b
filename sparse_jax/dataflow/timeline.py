"""When a weight stream ends: the cycle counts of a product, without executing it.

The recursion of `sparse_jax.kernels.weight_stream.costs`, on counts of non-zeros. Its
two ends are closed: without a limit on the rows in flight no column ever waits, and in
lock step every row takes as long as its slowest column,

    total = max over c of sum over o of work(o, c) + reduction            no limit
    total = sum over o of (max over c of work(o, c) + reduction)          lock step

    work(o, c) = nnz(o, c) weight_cycles + row_cycles

and so is a stream of equal rows, such as a dense one: groups of rows_in_flight rows are
as long as their work, or as one row and its reduction if that takes longer. Otherwise
all columns take one row of the stream at a time.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int, Integer

from sparse_jax.types import InputError

_ELEMENTS = 1 << 18
"""Counts that a step works on at a time: they stay in the cache."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Timeline:
    """Cycles of one PE row, by column; busy + stall = total.

    Attributes:
      total: until the last row is reduced.
      weights_C: non-zeros that each column met.
      busy_C: cycles on weights and end-of-row commands.
      stall_C: cycles of waiting, for other columns or for the reduction.
    """

    total: int
    weights_C: Int[np.ndarray, "C"]
    busy_C: Int[np.ndarray, "C"]
    stall_C: Int[np.ndarray, "C"]


def timeline(
    counts_OC: Integer[np.ndarray, "O C"],
    *,
    weight_cycles: int,
    row_cycles: int,
    reduction_cycles: int = 0,
    rows_in_flight: int | None = None,
) -> Timeline:
    """Cycle counts of a stream, exactly those of the kernel and of its reference.

    Args:
      counts_OC: non-zeros of each row of the stream in each column's slice. Equal rows
        cost nothing if they are one row in memory, from `np.broadcast_to`.
      weight_cycles: of one non-zero, trigger and arithmetic.
      row_cycles: of an end-of-row command.
      reduction_cycles: from the last partial sum of a row to the end of its reduction.
      rows_in_flight: rows whose partial sums a column keeps; None = no limit.

    Raises:
      InputError: a negative cost, or no row in flight.

    Example:
      >>> counts = np.array([[2, 0], [0, 2]])
      >>> costs = dict(weight_cycles=10, row_cycles=1)
      >>> timeline(counts, **costs).total  # each column finds its own pace
      22
      >>> timeline(counts, **costs, rows_in_flight=1).total  # lock step
      42
    """
    costs = {
        "weight_cycles": weight_cycles,
        "row_cycles": row_cycles,
        "reduction_cycles": reduction_cycles,
    }
    for name, value in costs.items():
        if value < 0:
            raise InputError(f"{name} must be >= 0, found {value}")
    if rows_in_flight is not None and rows_in_flight < 1:
        raise InputError(
            "rows_in_flight must be at least 1, or None for no limit, "
            f"found {rows_in_flight}"
        )
    n_rows = len(counts_OC)
    if n_rows and counts_OC.strides[0] == 0:
        weights_C = counts_OC[0].astype(np.int64) * n_rows
    else:
        weights_C = counts_OC.sum(0, dtype=np.int64)
    busy_C = weights_C * weight_cycles + n_rows * row_cycles
    window = n_rows if rows_in_flight is None else min(rows_in_flight, n_rows)
    total = 0
    if counts_OC.size and window == n_rows:
        total = int(busy_C.max()) + reduction_cycles
    elif counts_OC.size:
        total = _limited_total(counts_OC, window=window, **costs)
    return Timeline(
        total=total, weights_C=weights_C, busy_C=busy_C, stall_C=total - busy_C
    )


def _limited_total(
    counts_OC: np.ndarray,
    weight_cycles: int,
    row_cycles: int,
    reduction_cycles: int,
    window: int,
) -> int:
    """done(O - 1) with fewer rows in flight than there are."""
    n_rows = len(counts_OC)
    if counts_OC.strides[0] == 0:
        work = int(counts_OC[0].max()) * weight_cycles + row_cycles
        groups, rest = divmod(n_rows - 1, window)
        group = max(window * work, work + reduction_cycles)
        return groups * group + (rest + 1) * work + reduction_cycles
    total = int(counts_OC.max(1).sum(dtype=np.int64)) * weight_cycles
    total += n_rows * (row_cycles + reduction_cycles)
    if window == 1:
        return total
    # Lock step is the longest way there is: no clock passes it.
    dtype = np.int32 if total < 2**31 else np.int64
    return _step_rows(
        counts_OC, weight_cycles, row_cycles, reduction_cycles, window, dtype
    )


def _step_rows(
    counts_OC: np.ndarray,
    weight_cycles: int,
    row_cycles: int,
    reduction_cycles: int,
    window: int,
    dtype: type,
) -> int:
    """done(O - 1), all columns a row at a time."""
    n_rows, n_columns = counts_OC.shape
    finish_C = np.zeros(n_columns, dtype)
    # Entry o + window is done(o); the first `window` entries are rows before the first.
    done = [0] * window
    chunk = max(1, _ELEMENTS // n_columns)
    for first in range(0, n_rows, chunk):
        work_BC = counts_OC[first : first + chunk].astype(dtype)
        work_BC *= weight_cycles
        work_BC += row_cycles
        for o, work_C in enumerate(work_BC, first):
            np.maximum(finish_C, done[o], out=finish_C)
            finish_C += work_C
            done.append(int(finish_C.max()) + reduction_cycles)
    return done[-1]
