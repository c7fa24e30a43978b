"""What the uncertain constants of a machine do to a speed-up.

Each is set to the low and to the high end of its range, alone. Then all at once:
the speed-up of the step is driven down and up from four starts (every constant at the
end that alone gives the lower or higher speed-up, the shorter or longer step), by
turning the constants that matter most to their other end wherever that helps. Constants
act together, so that the range that is found is no proof that there is no wider one.
The dense model runs on the same changed machine.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from sparse_jax.dataflow import memory
from sparse_jax.dataflow.machine import Machine
from sparse_jax.dataflow.masks import Masks
from sparse_jax.dataflow.throughput import simulate
from sparse_jax.dataflow.workload import Workload

PAPER = 0.7
"""The sparsity nearest to this is the one whose constants are varied one by one."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """What is simulated; a smaller batch where a changed machine holds less."""

    work: Workload
    systems: int = 1

    def speedups(self, machine: Machine, masks: Masks) -> dict[str, float]:
        """Of the matrices and of the step over the dense model, and both times."""
        work = self.work
        most = memory.largest_batch(machine, work)
        if most < work.batch:
            work = dataclasses.replace(work, batch=max(1, most))
        dense = simulate(machine, work, systems=self.systems)
        sparse = simulate(machine, work, masks, systems=self.systems)
        return {
            "matrices": dense.matrices.seconds / sparse.matrices.seconds,
            "step": dense.seconds / sparse.seconds,
            "seconds": sparse.seconds,
            "dense_seconds": dense.seconds,
        }


def sensitivity(
    machine: Machine,
    case: Case,
    masks: Sequence[Masks],
    kept: Sequence[float],
    advance: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Varies every uncertain constant.

    Args:
      machine: the machine.
      case: what is simulated.
      masks: those to give a range for.
      kept: fraction of the weights that each keeps.
      advance: called after every constant, and after every range.

    Returns:
      sparsity of the mask for which constants are varied one by one; used: its
      speed-ups with none varied; constants: rows of name, unit, low, value, high, the
      speed-ups at both ends, and how far that of the step reaches, farthest first;
      ranges: for each mask the least and the most of every speed-up.
    """
    main = min(range(len(masks)), key=lambda i: abs(1 - kept[i] - PAPER))
    used = case.speedups(machine, masks[main])
    rows: list[dict[str, Any]] = []
    for name, constant in machine.uncertain():
        row: dict[str, Any] = {"name": name, "unit": constant.unit}
        row |= {"low": constant.low, "value": constant.value, "high": constant.high}
        for end in _ENDS:
            changed = machine.replace(**{name: row[end]})
            row[f"at_{end}"] = case.speedups(changed, masks[main])
        steps = [found["step"] for found in (row["at_low"], used, row["at_high"])]
        rows.append(row | {"reach": max(steps) - min(steps)})
        advance()
    rows.sort(key=lambda row: -row["reach"])
    ends = [_extreme(machine, case, masks[main], rows, sign) for sign in (-1, 1)]
    ranges = []
    for mask in masks:
        ranges.append(_range([case.speedups(m, mask) for m in (machine, *ends)]))
        advance()
    return {
        "sparsity": 1 - kept[main],
        "used": used,
        "constants": rows,
        "ranges": ranges,
    }


_ENDS = ("low", "high")
_TURNED = 12
"""Constants, those that matter most, that are turned to their other end."""


def _extreme(
    machine: Machine, case: Case, mask: Masks, rows: list[dict[str, Any]], sign: int
) -> Machine:
    """The machine with the most (1) or the least (-1) speed-up that is found."""

    def score(values: dict[str, float]) -> float:
        return sign * case.speedups(machine.replace(**values), mask)["step"]

    starts = [_all_at_once(rows, part, way) for part in _PARTS for way in (-1, 1)]
    best = max(starts, key=score)
    most = score(best)
    for row in rows[:_TURNED]:
        for end in _ENDS:
            turned = best | {row["name"]: float(row[end])}
            if turned != best and (found := score(turned)) > most:
                best, most = turned, found
    return machine.replace(**best)


_PARTS = ("step", "seconds")


def _all_at_once(rows: list[dict[str, Any]], part: str, way: int) -> dict[str, float]:
    """Every constant at the end that alone gives more (1) or less (-1) of a part."""
    found = {}
    for row in rows:
        higher = way * row["at_high"][part] > way * row["at_low"][part]
        found[row["name"]] = float(row["high" if higher else "low"])
    return found


def _range(found: list[dict[str, float]]) -> dict[str, dict[str, float]]:
    """The least and the most of both speed-ups."""
    parts = ("matrices", "step")
    return {
        name: {part: pick(speedups[part] for speedups in found) for part in parts}
        for name, pick in (("least", min), ("most", max))
    }
