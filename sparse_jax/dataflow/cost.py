"""Seconds of the machine, by what they go to."""

import dataclasses
import functools
from collections.abc import Iterable


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cost:
    """Time of some work on the whole machine, in seconds, divided by its causes.

    Attributes:
      compute: multiply-adds, as the mean over columns; SRAM ports and tokens that do
        not fill a vector included.
      imbalance: elements wait for those that hold more non-zeros.
      trigger: what a non-zero costs before its arithmetic.
      rows: commands at the ends of rows, and what is handed on there.
      stream: the weights or gradients on the link take longer than all of that.
      latency: filling and draining the grid.
    """

    compute: float = 0.0
    imbalance: float = 0.0
    trigger: float = 0.0
    rows: float = 0.0
    stream: float = 0.0
    latency: float = 0.0

    @property
    def seconds(self) -> float:
        """All of them."""
        return sum(getattr(self, name) for name in CAUSES)

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(
            compute=self.compute + other.compute,
            imbalance=self.imbalance + other.imbalance,
            trigger=self.trigger + other.trigger,
            rows=self.rows + other.rows,
            stream=self.stream + other.stream,
            latency=self.latency + other.latency,
        )


CAUSES = tuple(field.name for field in dataclasses.fields(Cost))
"""Names of the causes, in order."""


def total(costs: Iterable[Cost]) -> Cost:
    """The sum of costs."""
    return functools.reduce(Cost.__add__, costs, Cost())
