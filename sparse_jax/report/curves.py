"""Curves over training tokens, from the rows that stages write as they train."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from sparse_jax.report.gap import is_control

Rows = Sequence[Mapping[str, Any]]
Histories = Mapping[str, Rows]
Curve = tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]
"""Cumulative tokens, and a value at each."""


def smoothing(rows: Rows) -> int:
    """Rows in the running mean of a training curve: a 25th of them, an odd number."""
    return len(_points(rows, "loss")[0]) // 50 * 2 + 1


def loss_curve(rows: Rows) -> Curve:
    """Smoothed training loss over tokens."""
    tokens, loss = _points(rows, "loss")
    return tokens, running_mean(loss, smoothing(rows))


def heldout_curve(rows: Rows, domain: str) -> Curve:
    """Held-out loss on one domain over tokens."""
    return _points(rows, f"heldout/{domain}")


def control_losses(histories: Histories) -> dict[float, float]:
    """Training loss of all stages of the control by cumulative tokens, not smoothed."""
    losses: dict[float, float] = {}
    for name, rows in histories.items():
        if is_control(name):
            losses |= dict(zip(*_points(rows, "loss"), strict=True))
    return losses


def gap_curve(rows: Rows, control: Mapping[float, float]) -> Curve:
    """Gap of the training loss, at the tokens where the control has a row too.

        mean(loss) / mean(control loss) - 1, both over the same neighbouring rows

    The control sees the same batches, so that most of their noise cancels.
    """
    tokens, loss = _points(rows, "loss")
    shared = np.array([t in control for t in tokens], bool)
    tokens, loss = tokens[shared], loss[shared]
    reference = np.array([control[t] for t in tokens], np.float64)
    size = smoothing(rows)
    return tokens, running_mean(loss, size) / running_mean(reference, size) - 1


def running_mean(values: Float[np.ndarray, " n"], size: int) -> Float[np.ndarray, " n"]:
    """Centred mean over `size` neighbours, an odd number; fewer at both ends.

    Example:
      >>> running_mean(np.array([1.0, 2.0, 6.0, 2.0]), 3).tolist()
      [1.0, 3.0, 3.3333333333333335, 2.0]
    """
    # An end shrinks on both sides, so that a mean stays centred on its point.
    half = [min(size // 2, i, len(values) - 1 - i) for i in range(len(values))]
    return np.array([values[i - h : i + h + 1].mean() for i, h in enumerate(half)])


def _points(rows: Rows, name: str) -> Curve:
    points = [
        (row["tokens"], row[name])
        for row in rows
        if row.get("tokens") is not None and row.get(name) is not None
    ]
    tokens, values = np.array(points, np.float64).reshape(-1, 2).T
    return tokens, values
