"""The gap to the dense control: what sparsity costs at equal data."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from sparse_jax.report.names import parse

Row = Mapping[str, Any]


def relative_gap(loss: int | float, control_loss: int | float) -> float:
    """loss / control loss - 1: positive where the control is better.

    Example:
      >>> round(relative_gap(2.02, 2.0), 4)
      0.01
    """
    return loss / control_loss - 1


def is_control(name: str) -> bool:
    """Whether a model is the dense run that others are held against.

    `dense` is its own continuation's beginning, so it is the control at its tokens.
    """
    return name == "dense" or name.startswith("dense_control")


def add_gaps(models: Sequence[Row]) -> list[dict[str, Any]]:
    """Gives every model its `gap`: per domain, to the control at the same tokens.

    A row of one of several seeds (`_seed1` at the end of its name) is held against the
    control of its seed, or the first one where its seed has none; a row without a seed
    against the mean loss of the controls of all seeds, where there are several. A model
    has a gap of None where no control was evaluated at exactly its cumulative tokens on
    that domain; controls have none themselves.

    Args:
      models: rows with `name`, `tokens` and `domains` (see `write_report`).

    Returns:
      Copies of the rows with `gap`, {domain: gap or None}, replaced.

    Example:
      >>> rows = [
      ...     {"name": "dense", "tokens": 9, "domains": {"code": {"loss": 2.0}}},
      ...     {"name": "one_shot_50", "tokens": 9, "domains": {"code": {"loss": 2.5}}},
      ... ]
      >>> [row["gap"] for row in add_gaps(rows)]
      [{'code': None}, {'code': 0.25}]
    """
    controls = [row for row in models if is_control(row["name"])]

    def gap(row: Row, domain: str, loss: int | float | None) -> float | None:
        if is_control(row["name"]) or row.get("tokens") is None or loss is None:
            return None
        losses = [
            (parse(control["name"]).seed, control["domains"][domain]["loss"])
            for control in controls
            if control.get("tokens") == row["tokens"]
            and control.get("domains", {}).get(domain, {}).get("loss")
        ]
        reference = _reference(parse(row["name"]).seed, losses)
        return None if reference is None else relative_gap(loss, reference)

    return [
        dict(row)
        | {
            "gap": {
                domain: gap(row, domain, numbers.get("loss"))
                for domain, numbers in row.get("domains", {}).items()
            }
        }
        for row in models
    ]


def _reference(
    seed: int | None, losses: Sequence[tuple[int | None, int | float]]
) -> int | float | None:
    """The loss to hold a row of this seed against, of (seed, loss) of the controls."""
    if not losses:
        return None
    if seed is None:
        seeded = [loss for found, loss in losses if found is not None]
        return statistics.fmean(seeded) if len(seeded) > 1 else losses[0][1]
    return next((loss for found, loss in losses if found == seed), losses[0][1])
