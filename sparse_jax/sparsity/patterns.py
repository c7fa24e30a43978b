"""Sparsity patterns: the shapes that zeros may take in a weight matrix [out, in].

A pattern is a frozen dataclass and a pytree: its sparsity is data, so that changing it
never recompiles anything, and its shape parameters are static. Counts are computed on
the host in float64, `int(units * sparsity)`, and enter compiled code as integers, so
they are exact for every matrix. Of equal scores the lowest index is kept.
"""

from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool

from sparse_jax import mesh
from sparse_jax.sparsity.select import is_concrete, quotas
from sparse_jax.sparsity.units import (
    Mask,
    Matrix,
    dead_per_row,
    project_nm,
    project_units,
)
from sparse_jax.types import InputError

Kept = Bool[Array, "*lead out in"]
_STATIC = {"static": True}  # JAX takes such fields into the tree's structure


def _check_sparsity(sparsity: Any, where: str) -> None:
    if isinstance(sparsity, (int, float, np.number)) and not isinstance(sparsity, bool):
        valid = 0.0 <= sparsity < 1.0
    else:
        # Pytree operations rebuild patterns around tracers, arrays and sentinels.
        valid = not isinstance(sparsity, (str, bool))
    if not valid:
        raise InputError(
            f"{where}: sparsity must be a number in [0, 1), found {sparsity!r}"
        )


def _check_sizes(where: str, **sizes: Any) -> None:
    for name, size in sizes.items():
        if not isinstance(size, int) or isinstance(size, bool) or size < 1:
            raise InputError(
                f"{where}: {name} must be a positive integer, found {size!r}"
            )


class Pattern:
    """A shape of zeros; see `Unstructured`, `NM`, `Group` and `Block`."""

    def check(self, shape: tuple[int, ...], name: str = "matrix") -> None:
        """Raises InputError unless the pattern divides [..., out, in] `shape`."""
        if len(shape) < 2:
            raise InputError(f"{name}: expected a matrix [..., out, in], found {shape}")
        for dimension, size, divisor in zip(
            ("output", "input"), shape[-2:], self.divisors, strict=True
        ):
            if size % divisor:
                raise InputError(
                    f"{name}: pattern {self} needs the {dimension} dimension to be a "
                    f"multiple of {divisor}, found {size}; give this matrix another "
                    "pattern or leave it dense"
                )

    @property
    def divisors(self) -> tuple[int, int]:
        """What the (output, input) dimensions must be multiples of."""
        raise NotImplementedError

    def project(self, scores: Matrix, prior_mask: Mask | None = None) -> Kept:
        """Keeps the highest scores that the pattern allows, with exact counts.

        Args:
          scores: importance of every weight, higher is kept; each matrix of the leading
            axes is ranked on its own. Group and Block add up the scores of a unit's
            members: give squared scores to rank by energy.
          prior_mask: True = kept so far. Pruned entries are never kept again, and they
            count towards the target.

        Returns:
          The mask, True = kept.

        Raises:
          InputError: the pattern does not divide the matrix, or the prior mask prunes
            more than the pattern allows.

        Example:
          >>> NM(1, 2).project(np.array([[1.0, 3.0, 2.0, 2.0]])).tolist()
          [[False, True, True, False]]
        """
        raise NotImplementedError


class UnitPattern(Pattern):
    """A pattern that keeps or drops whole units of (out, in) neighbours by rank."""

    sparsity: Any  # the patterns' own are frozen, which the type checker minds
    per_row: bool = False

    @property
    def unit(self) -> tuple[int, int]:
        """Extent of a unit over (outputs, inputs)."""
        raise NotImplementedError

    @property
    def divisors(self) -> tuple[int, int]:
        """The unit's own extent."""
        return self.unit

    def at(self, sparsity: float) -> "UnitPattern":
        """The same pattern with another sparsity."""
        return replace(self, sparsity=sparsity)  # pyrefly: ignore[bad-specialization]

    def n_pruned(self, n_units: int) -> int:
        """Of `n_units` units, those that go: `int(n_units * sparsity)`."""
        if not is_concrete(self.sparsity):
            raise InputError(
                f"{type(self).__name__}: counts are exact only for a concrete sparsity;"
                " build the pattern outside the compiled function"
            )
        return int(n_units * float(self.sparsity))

    def project(self, scores: Matrix, prior_mask: Mask | None = None) -> Kept:
        """Keeps the units with the highest summed scores; see `Pattern.project`."""
        self.check(scores.shape)
        counts = self.counts(scores.shape, prior_mask)
        return project_units(scores, as_prior(prior_mask, scores), counts, self.unit)

    def counts(
        self, shape: tuple[int, ...], prior_mask: Mask | None = None
    ) -> np.ndarray:
        """How many units to prune of every matrix [M], or of every row [M, out].

        Raises:
          InputError: the prior mask prunes more than the pattern allows.
        """
        n_matrices = int(np.prod(shape[:-2]))
        n_rows, n_columns = (
            size // extent for size, extent in zip(shape[-2:], self.unit, strict=True)
        )
        total = self.n_pruned(n_rows * n_columns)
        dead_MO = np.zeros((n_matrices, n_rows), np.int64)
        if prior_mask is not None:
            dead = dead_per_row(prior_mask, self.unit)
            dead_MO = mesh.to_host(dead).astype(np.int64).reshape(dead_MO.shape)
            check_nesting(self, total, dead_MO.sum(-1), n_rows * n_columns)
        if not self.per_row:
            return np.full(n_matrices, total, np.int32)
        sizes = np.full(n_rows, n_columns)
        return np.stack([quotas(total, sizes, dead_O) for dead_O in dead_MO])


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Unstructured(UnitPattern):
    """Any weight may be zero: `int(out * in * sparsity)` of each matrix are.

    Attributes:
      sparsity: fraction of zeros, in [0, 1).
      per_row: rank inside each output row; rows then differ by at most one zero
        (without a prior mask) and the matrix's count is still exact.

    Example:
      >>> Unstructured(0.5).project(np.array([[1.0, 2.0]])).tolist()
      [[False, True]]
    """

    sparsity: Any  # pyrefly: ignore[bad-override]
    per_row: bool = field(default=False, metadata=_STATIC)  # pyrefly: ignore[bad-override]

    def __post_init__(self):
        _check_sparsity(self.sparsity, "Unstructured")

    def __str__(self):
        return f"unstructured@{self.sparsity:g}" + " per row" * self.per_row

    @property
    def unit(self) -> tuple[int, int]:
        """Extent of a unit over (outputs, inputs)."""
        return (1, 1)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class NM(Pattern):
    """`n` of every `m` consecutive inputs of a row are KEPT (2:4 keeps two of four).

    A prior mask that leaves fewer than `n` in a group leaves that many.

    Attributes:
      n: kept weights per group, 1 <= n <= m.
      m: size of a group along the inputs; must divide them.
    """

    n: int = field(metadata=_STATIC)
    m: int = field(metadata=_STATIC)

    def __post_init__(self):
        _check_sizes("N:M pattern", n=self.n, m=self.m)
        if self.n > self.m:
            raise InputError(
                f"pattern {self.n}:{self.m} keeps n of every m weights, so n must be "
                f"at most m = {self.m}, found {self.n}"
            )

    def __str__(self):
        return f"{self.n}:{self.m}"

    @property
    def divisors(self) -> tuple[int, int]:
        """What the (output, input) dimensions must be multiples of."""
        return (1, self.m)

    @property
    def sparsity(self) -> float:
        """1 - n / m."""
        return 1.0 - self.n / self.m

    def project(self, scores: Matrix, prior_mask: Mask | None = None) -> Kept:
        """Keeps the `n` highest scores of every group; see `Pattern.project`."""
        self.check(scores.shape)
        return project_nm(scores, as_prior(prior_mask, scores), self.n, self.m)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Group(UnitPattern):
    """Runs of `size` consecutive inputs of a row are kept or dropped whole.

    Attributes:
      size: length of a run; divides the inputs.
      sparsity: fraction of runs that are zero, in [0, 1).
      per_row: rank inside each output row, see `Unstructured`.
    """

    size: int = field(metadata=_STATIC)
    sparsity: Any = field()  # pyrefly: ignore[bad-override]
    per_row: bool = field(default=False, metadata=_STATIC)  # pyrefly: ignore[bad-override]

    def __post_init__(self):
        _check_sizes("Group", size=self.size)
        _check_sparsity(self.sparsity, "Group")

    def __str__(self):
        return f"group:{self.size}@{self.sparsity:g}" + " per row" * self.per_row

    @property
    def unit(self) -> tuple[int, int]:
        """Extent of a unit over (outputs, inputs)."""
        return (1, self.size)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Block(UnitPattern):
    """Tiles of `bi` inputs by `bo` outputs are kept or dropped whole.

    Attributes:
      bi: extent along the inputs; must divide them.
      bo: extent along the outputs; must divide them.
      sparsity: fraction of tiles that are zero, in [0, 1).
    """

    bi: int = field(metadata=_STATIC)
    bo: int = field(metadata=_STATIC)
    sparsity: Any = field()  # pyrefly: ignore[bad-override]

    def __post_init__(self):
        _check_sizes("Block", bi=self.bi, bo=self.bo)
        _check_sparsity(self.sparsity, "Block")

    def __str__(self):
        return f"block:{self.bi}x{self.bo}@{self.sparsity:g}"

    @property
    def unit(self) -> tuple[int, int]:
        """Extent of a unit over (outputs, inputs)."""
        return (self.bo, self.bi)


def as_prior(prior_mask: Mask | None, scores: Matrix) -> Mask:
    """No prior mask means that everything may be kept: both cases compile only once."""
    return jnp.ones_like(scores, bool) if prior_mask is None else prior_mask


def check_nesting(
    pattern: UnitPattern, n_pruned: int, n_dead: np.ndarray | np.integer, n_units: int
) -> None:
    """Raises InputError where a prior mask prunes more units than the pattern may."""
    if np.any(n_dead > n_pruned):
        raise InputError(
            f"pattern {pattern} prunes {n_pruned} of {n_units} units, but the prior "
            f"mask has pruned {int(np.max(n_dead))} already (sparsity "
            f"{np.max(n_dead) / n_units:.4g}); ask for at least that sparsity, or turn "
            "nesting off"
        )
