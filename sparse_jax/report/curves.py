"""Curves over training tokens, from the rows that stages write as they train."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from sparse_jax.report.gap import is_control
from sparse_jax.report.names import parse

Rows = Sequence[Mapping[str, Any]]
Histories = Mapping[str, Rows]
Curve = tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]
"""Cumulative tokens, and a value at each."""


def smoothing(rows: Rows) -> int:
    """Rows in the running mean of a training curve: a 25th of them, an odd number."""
    return len(training_loss(rows)[0]) // 50 * 2 + 1


def training_loss(rows: Rows) -> Curve:
    """Cross-entropy over tokens, not smoothed.

    The `loss` of a distilled stage holds the distance to its teacher too, so that its
    part `cross_entropy` is what compares with other stages.
    """
    distilled = any(row.get("cross_entropy") is not None for row in rows)
    return points(rows, "cross_entropy" if distilled else "loss")


def loss_curve(rows: Rows) -> Curve:
    """Smoothed training loss over tokens."""
    tokens, loss = training_loss(rows)
    return tokens, running_mean(loss, smoothing(rows))


def heldout_curve(rows: Rows, domain: str) -> Curve:
    """Held-out loss on one domain over tokens."""
    return points(rows, f"heldout/{domain}")


def control_losses(histories: Histories, seed: int | None = None) -> dict[float, float]:
    """Training loss of all stages of the control by cumulative tokens, not smoothed.

    Args:
      histories: rows of training by stage.
      seed: of the stage that is held against it. Another seed sees other batches, so
        that a stage of a seed is held only against controls of its own or of none.
    """
    losses: dict[float, float] = {}
    for name, rows in histories.items():
        if is_control(name) and (seed is None or parse(name).seed in (None, seed)):
            losses |= dict(zip(*training_loss(rows), strict=True))
    return losses


def gap_curve(rows: Rows, control: Mapping[float, float]) -> Curve:
    """Gap of the training loss, at the tokens where the control has a row too.

        mean(loss) / mean(control loss) - 1, both over the same neighbouring rows

    The control sees the same batches, so that most of their noise cancels.
    """
    tokens, loss = training_loss(rows)
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


def mean_curve(curves: Sequence[tuple[np.ndarray, np.ndarray]]) -> Curve:
    """Mean of several curves, of any lengths, at the tokens that all of them have.

    Example:
      >>> first = np.array([1.0, 2.0, 3.0]), np.array([0.1, 0.2, 0.3])
      >>> second = np.array([2.0, 3.0]), np.array([0.4, 0.5])
      >>> tokens, mean = mean_curve([first, second])
      >>> tokens.tolist(), mean.round(3).tolist()
      ([2.0, 3.0], [0.3, 0.4])
    """
    values = [dict(zip(*curve, strict=True)) for curve in curves]
    shared = sorted(set.intersection(*map(set, values))) if values else []
    means = [np.mean([found[t] for found in values]) for t in shared]
    return np.array(shared, np.float64), np.array(means, np.float64)


def points(rows: Rows, name: str) -> Curve:
    """A number of the rows over tokens, where they have it."""
    found = [
        (row["tokens"], row[name])
        for row in rows
        if row.get("tokens") is not None and row.get(name) is not None
    ]
    tokens, values = np.array(found, np.float64).reshape(-1, 2).T
    return tokens, values
