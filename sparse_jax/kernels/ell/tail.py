"""The tail of ell_int8: weights of the blocks that keep more than B of 16.

It belongs to a panel of 16 outputs and is cut into steps of 16 outputs x 4 slots, whose
ids count from the start of a window of 128 inputs. A step starts at the first block of
16 inputs in which any output still has a weight to place; every output then takes its
next up to four that the window holds. Outputs with few weights are soon
ahead, those with many catch up, so the padding is that of whole rows rather than that
of every superblock.
"""

from typing import Any, NamedTuple

import numpy as np

from sparse_jax.kernels.format import PANEL
from sparse_jax.kernels.n16.slots import BLOCK, INT_OUTPUTS

WINDOW = 128
SLOTS = 4
PADDING = 128
"""The kernels pad activations to a multiple of it: windows stay inside."""


class Steps(NamedTuple):
    """The steps of all panels, those of a panel together.

    Attributes:
      panels: panel of each step, ascending.
      starts: block of 16 inputs in which its window starts.
      columns: input of each slot, [steps, 16, 4]; -1 where the slot is empty.
    """

    panels: np.ndarray
    starts: np.ndarray
    columns: np.ndarray


def last_start(n_in: int) -> int:
    """The last block in which a window may start."""
    return (n_in + -n_in % PADDING - WINDOW) // BLOCK


def _columns_by_row(tail_OI: np.ndarray) -> np.ndarray:
    """The inputs of every output in order, then enough of `in` to end any step."""
    n_out, n_in = tail_OI.shape
    rows, columns = np.nonzero(tail_OI)
    counts = np.bincount(rows, minlength=n_out)
    padded = np.full((n_out, int(counts.max(initial=0)) + SLOTS), n_in)
    firsts = np.cumsum(counts) - counts
    padded[rows, np.arange(len(rows)) - firsts[rows]] = columns
    return padded


def schedule(tail_OI: np.ndarray) -> Steps:
    """Places the weights of the tail, all panels at once.

    Args:
      tail_OI: True = in the tail; `out` is a multiple of 16.

    Example:
      >>> tail_OI = np.zeros((16, 512), bool)
      >>> tail_OI[3, [0, 70, 200, 250, 255, 300]] = True
      >>> steps = schedule(tail_OI)
      >>> steps.starts.tolist(), steps.columns[:, 3].tolist()
      ([0, 12], [[0, 70, -1, -1], [200, 250, 255, 300]])
    """
    n_out, n_in = tail_OI.shape
    columns_OK = _columns_by_row(tail_OI)
    next_O = np.zeros(n_out, np.int64)
    found = []
    while True:
        heads_OS = np.take_along_axis(
            columns_OK, next_O[:, None] + np.arange(SLOTS), axis=1
        )
        first_P = heads_OS[:, 0].reshape(-1, PANEL).min(axis=1)
        busy = np.flatnonzero(first_P < n_in)
        if not busy.size:
            break
        start_P = np.minimum(first_P // BLOCK, last_start(n_in))
        end_O = np.repeat(start_P * BLOCK + WINDOW, PANEL)
        taken_OS = heads_OS < np.minimum(end_O, n_in)[:, None]
        next_O += taken_OS.sum(axis=1)
        columns = np.where(taken_OS, heads_OS, -1).reshape(-1, PANEL, SLOTS)
        found.append((busy, start_P[busy], columns[busy]))
    panels = np.concatenate([np.empty(0, np.int64), *(f[0] for f in found)])
    starts = np.concatenate([np.empty(0, np.int64), *(f[1] for f in found)])
    columns = np.concatenate(
        [np.empty((0, PANEL, SLOTS), np.int64), *(f[2] for f in found)]
    )
    order = np.argsort(panels, kind="stable")
    return Steps(panels[order], starts[order], columns[order])


def to_lanes(slots: Any) -> Any:
    """[steps, 16 outputs, 4] -> [steps, 64] in the kernels' order of lanes."""
    return slots[:, INT_OUTPUTS].reshape(-1, PANEL * SLOTS)


def from_lanes(slots: Any) -> Any:
    """The inverse of `to_lanes`."""
    return slots.reshape(-1, PANEL, SLOTS)[:, np.argsort(INT_OUTPUTS)]
