"""How sparsity is spread over the matrices of a model, under one budget.

Rows, one per matrix, are what `sensitivity.measure` finds in every dense block. Counts
are of units, which the pattern keeps or drops whole (single weights if unstructured).

Minimal error: with e_m(c) the error of pruning c units of matrix m,

    minimise sum_m e_m(c_m)   over   sum_m c_m = C,   low_m <= c_m <= high_m

With e_m replaced by its lower convex hull, the optimum takes the hulls' segments in the
order of their slopes until C is reached; the last slope is the Lagrange multiplier.
"""

import itertools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from sparse_jax.sparsity.patterns import UnitPattern
from sparse_jax.sparsity.units import Mask, dead_per_row
from sparse_jax.types import InputError

Row = dict[str, Any]

SPREADS = {"uniform": 0.0, "owl": 0.08, "error": 0.15, "output": 0.2}
"""kind -> how far from the target it lets sparsities lie unless told otherwise."""

_STEPS = 64  # segments that a curve is cut into
_LEAST_SHARE = 0.5  # no matrix keeps less than this share of the target's density


@dataclass(frozen=True, kw_only=True)
class AllocationConfig:
    """How the sparsity of a run is spread over its matrices.

    Only matrices whose rule is "pattern" take part, and only where the pattern has a
    sparsity to choose, which N:M has not. Together they prune exactly as many units as
    uniform sparsity would.

    Attributes:
      kind: "uniform", the same everywhere; "owl", the same in all matrices of a block,
        less in blocks with more outliers; "error", the least sum of the matrices'
        relative errors, which need not lower the loss; "output", the least sum of the
        relative errors that they cause at the model's end.
      spread: how far a sparsity may lie from the target ("owl": half the width of the
        range over all blocks, the paper's lambda). None = the kind's default. No matrix
        keeps less than half of the target's density, whatever the spread.
      outlier: "owl" counts scores above this multiple of their mean (the paper's M).
      points: sparsities at which "error" and "output" measure every matrix.
    """

    kind: str = "uniform"
    spread: float | None = None
    outlier: float = 5.0
    points: int = 3

    def __post_init__(self):
        if self.kind not in SPREADS:
            raise InputError(
                f"allocation {self.kind!r} is not known; expected one of "
                f"{sorted(SPREADS)}"
            )
        if self.spread is not None and not 0.0 <= self.spread < 1.0:
            raise InputError(
                f"allocation.spread must be in [0, 1), found {self.spread!r}"
            )
        if self.spread is not None and self.kind == "uniform":
            raise InputError(
                "allocation.spread has no meaning for allocation 'uniform'; set "
                "allocation.kind, or leave the spread out"
            )
        if not (math.isfinite(self.outlier) and self.outlier > 0):
            raise InputError(f"allocation.outlier must be > 0, found {self.outlier!r}")
        if self.points < 2:
            raise InputError(
                f"allocation.points must be at least 2, found {self.points}"
            )

    @property
    def reach(self) -> float:
        """How far a sparsity may lie from the target."""
        return SPREADS[self.kind] if self.spread is None else self.spread

    def limits(self, row: Row, target: float) -> tuple[int, int]:
        """Fewest and most units of a matrix to prune."""
        units, uniform = row["units"], int(row["units"] * target)
        lowest, highest = 0.0, 1.0 - _LEAST_SHARE * (1.0 - target)
        if self.kind != "owl":
            reach = min(self.reach, highest - target)
            lowest, highest = target - reach, target + reach
        low = max(min(math.ceil(units * lowest), uniform), row["dead"])
        return low, max(int(units * highest), uniform, row["dead"])


def count_units(
    pattern: UnitPattern, shape: tuple[int, ...], prior: Mask | None = None
) -> Row:
    """Units of a matrix [out, in], and how many of them a prior mask has pruned.

    Example:
      >>> from sparse_jax.sparsity import Group
      >>> count_units(Group(4, 0.5), (2, 8))
      {'units': 4, 'dead': 0}
    """
    units = math.prod(shape) // math.prod(pattern.unit)
    dead = 0 if prior is None else int(dead_per_row(prior, pattern.unit).sum())
    return {"units": units, "dead": dead}


def exact_sparsity(count: int, units: int) -> float:
    """The sparsity that prunes this count: int(units * sparsity) == count.

    Example:
      >>> int(100 * (29 / 100)), int(100 * exact_sparsity(29, 100))
      (28, 29)
    """
    sparsity = count / units
    return sparsity if int(units * sparsity) == count else math.nextafter(sparsity, 1)


def budget(rows: list[Row], target: float, config: AllocationConfig) -> int:
    """How many units to prune in all: as many as uniform sparsity would.

    Args:
      rows: with the counts of `count_units`, of all matrices that take part.
      target: sparsity, in [0, 1).
      config: the kind, and its limits.

    Raises:
      InputError: there are no matrices, or prior masks prune more than that or leave no
        room inside the limits.
    """
    if not rows:
        raise InputError(
            f"allocation {config.kind!r} needs matrices with a sparsity to choose, by "
            "the rule 'pattern' and a pattern other than N:M, which fixes its own, and "
            "found none; use allocation 'uniform'"
        )
    total = sum(int(row["units"] * target) for row in rows)
    least = sum(config.limits(row, target)[0] for row in rows)
    if least > total:
        dead, units = (sum(row[name] for row in rows) for name in ("dead", "units"))
        raise InputError(
            f"allocation {config.kind!r}: sparsity {target:g} prunes {total} of "
            f"{units} units, but the prior masks have pruned {dead} already (sparsity "
            f"{dead / units:.4g}) and the limits on every matrix ask for {least}; "
            "raise the sparsity or allocation.spread, or turn nesting off"
        )
    return total


def allocate(
    blocks: list[list[Row]], target: float, config: AllocationConfig
) -> list[dict[str, float]]:
    """Chooses the sparsity of every measured matrix.

    OWL (Yin et al. 2023, arXiv 2310.05175): with o_l the share of outliers in block l,
    its density is 1 - target + 2 spread (o_l - min o) / (max o - min o), shifted so
    that the mean over all weights meets the target.

    Args:
      blocks: for every block the rows of `sensitivity.measure`.
      target: fraction of zeros over all these matrices, in [0, 1).
      config: the kind, and its options.

    Returns:
      For every block {path: sparsity}. A pattern with that sparsity prunes exactly the
      count that was allocated, and all together exactly `budget`.

    Raises:
      InputError: see `budget`.
    """
    rows = [row for block in blocks for row in block]
    total = budget(rows, target, config)
    low_M, high_M = np.array([config.limits(row, target) for row in rows]).T
    if config.kind == "uniform":
        counts_M = low_M
    elif config.kind == "owl":
        wanted_M = _owl(blocks, target, config.reach)
        counts_M = _nearest(wanted_M, rows, low_M, high_M, total)
    else:
        counts_M = _least_error(_errors(blocks, config), rows, low_M, high_M, total)
    counts = iter(counts_M.tolist())
    return [
        {row["path"]: exact_sparsity(next(counts), row["units"]) for row in block}
        for block in blocks
    ]


def _owl(blocks, target, spread) -> Float[np.ndarray, " M"]:
    """OWL's sparsity of every matrix, before any limits."""
    outliers_L, units_L = np.array(
        [
            [sum(row[name] for row in block) for name in ("outliers", "units")]
            for block in blocks
            if block
        ],
        np.float64,
    ).T
    share_L = outliers_L / units_L
    width = np.ptp(share_L) or 1.0  # the same everywhere: uniform
    density_L = 2 * spread * (share_L - share_L.min()) / width
    sparsity_L = target - density_L + np.average(density_L, weights=units_L)
    return np.repeat(sparsity_L, [len(block) for block in blocks if block])


def _nearest(wanted_M, rows, low_M, high_M, total) -> Int[np.ndarray, " M"]:
    """Counts for the wanted sparsities, all shifted alike to meet limits and total."""
    units_M = np.array([row["units"] for row in rows], np.float64)

    def counts(shift):
        return np.clip(units_M * (wanted_M + shift), low_M, high_M)

    below, above = -1.0, 1.0
    for _ in range(60):
        middle = (below + above) / 2
        if counts(middle).sum() < total:
            below = middle
        else:
            above = middle
    exact_M = counts(above)
    counts_M = np.floor(exact_M + 1e-6).astype(np.int64)
    # What rounding down has left over goes to the largest remainders.
    left = total - int(counts_M.sum())
    counts_M[np.argsort(counts_M - exact_M, kind="stable")[:left]] += 1
    return counts_M


def _errors(blocks, config) -> list[Float[np.ndarray, " points"]]:
    """Every matrix's errors at its sparsities, as far as they count at the end."""
    if config.kind == "error":
        return [np.array(row["errors"]) for block in blocks for row in block]
    # A block where nothing takes part is not measured: it passes errors on unchanged.
    gains_L = np.array([block[0]["gain"] if block else 1.0 for block in blocks])
    later_L = np.append(np.cumprod(gains_L[::-1])[::-1][1:], 1.0)  # of blocks above l
    return [
        later * np.array(row["errors"])
        for later, block in zip(later_L, blocks, strict=True)
        for row in block
    ]


def _least_error(errors, rows, low_M, high_M, total) -> Int[np.ndarray, " M"]:
    """Counts of the least summed error; see the header."""
    steps = []  # (slope, number inside its straight segment, matrix, units)
    for index, row in enumerate(rows):
        knots = np.linspace(low_M[index], high_M[index], _STEPS + 1)
        knots = np.unique(knots.astype(np.int64))
        curve = _interpolate(knots / row["units"], row["sparsities"], errors[index])
        corners = _convex_hull(knots, curve)
        for first, last in itertools.pairwise(corners):
            slope = (curve[last] - curve[first]) / (knots[last] - knots[first])
            widths = np.diff(knots[first : last + 1]).tolist()
            steps += [(slope, i, index, width) for i, width in enumerate(widths)]
    counts_M = low_M.astype(np.int64)
    left = total - int(counts_M.sum())
    for _, _, index, width in sorted(steps):
        taken = min(width, left)
        counts_M[index] += taken
        left -= taken
    return counts_M


def _interpolate(sparsity, sparsities, errors) -> Float[np.ndarray, " knots"]:
    """Errors between the measured sparsities: errors grow about exponentially."""
    errors = np.maximum.accumulate(errors)
    floor = max(1e-3 * errors[-1], 1e-30)  # no weight pruned, no error: no logarithm
    return np.exp(np.interp(sparsity, sparsities, np.log(errors + floor)))


def _convex_hull(x, y) -> list[int]:
    """Indices of the corners of the lower convex hull of points with rising x."""
    corners = [0]
    for j in range(1, len(x)):
        while len(corners) > 1:
            a, b = corners[-2:]
            if (y[b] - y[a]) * (x[j] - x[a]) < (y[j] - y[a]) * (x[b] - x[a]):
                break
            corners.pop()
        corners.append(j)
    return corners
