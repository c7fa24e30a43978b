"""What one pruning run does."""

import inspect
import math
from dataclasses import dataclass
from typing import Any

from sparse_jax.prune.allocate import AllocationConfig
from sparse_jax.prune.quantize_config import QuantizeConfig
from sparse_jax.solvers import find_solver
from sparse_jax.sparsity import Pattern, parse
from sparse_jax.types import InputError

LINEARS = r"layers/(attention/(q|k|v|o)|mlp/(gate|up|down))/kernel"
"""Paths of the seven matrices of a decoder block."""

FOUND = "found"
"""The pattern that keeps the masks a model has, and prunes nothing more."""

_BATCH_TOKENS = 1024


@dataclass(frozen=True, kw_only=True)
class PruneConfig:
    """One-shot pruning, and rounding, of a model.

    Attributes:
      solver: "magnitude", "wanda", "sparsegpt", "sparsegpt_refit" or "admm".
      pattern: "unstructured", "N:M" (N kept of every M inputs), "group:SIZE" or
        "block:INxOUT"; or "found": the zeros that the model has, and no more.
      sparsity: fraction of zeros in the pruned matrices, in [0, 1); N:M fixes its own.
      allocation: how that fraction is spread over layers and matrices.
      block_size: columns that SparseGPT ranks together; this and the next three are
        for the solvers that have such an option, and None is the solver's default.
      damping: relative damping of the Hessian.
      iterations: most iterations of the refit, or of ADMM's search.
      tolerance: a row's refit ends when an iteration gains less than this fraction.
      reference: SparseGPT with the public implementation's exact thresholds.
      nested: weights pruned before stay pruned.
      samples: calibration sequences.
      sample_length: tokens of each.
      seed: which calibration sequences are drawn.
      batch_size: sequences that go through a block at a time; None = about 1024 tokens.
      quantize: rounds the matrices to integer grids in the same solve; None = floats.
      rules: ordered (path regex, value) pairs; the first full match wins and every leaf
        must be covered. Values: "pattern" (the fields above), "dense", or a pattern of
        its own such as "2:4" or "unstructured@0.6".
    """

    solver: str = "sparsegpt"
    pattern: str = "unstructured"
    sparsity: float = 0.5
    allocation: AllocationConfig = AllocationConfig()
    block_size: int | None = None
    damping: float | None = None
    iterations: int | None = None
    tolerance: float | None = None
    reference: bool = False
    nested: bool = True
    samples: int = 128
    sample_length: int = 128
    seed: int = 0
    batch_size: int | None = None
    quantize: QuantizeConfig | None = None
    rules: tuple[tuple[str, str], ...] = ((LINEARS, "pattern"), (".*", "dense"))

    def __post_init__(self):
        if not 0.0 <= self.sparsity < 1.0:
            raise InputError(
                f"prune.sparsity must be in [0, 1), found {self.sparsity!r}"
            )
        counts = ("samples", "sample_length", "batch_size", "block_size", "iterations")
        for name in counts:
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"prune.{name} must be at least 1, found {value}")
        for name in ("damping", "tolerance"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value >= 0):
                raise InputError(f"prune.{name} must be >= 0, found {value}")
        find_solver(self.solver, self.options)
        self.pattern_rules()
        if self.pattern == FOUND and self.quantize is None:
            raise InputError(
                "prune.pattern 'found' prunes nothing; name a pattern, or what to "
                "round to with prune.quantize"
            )
        if self.pattern == FOUND and not self.nested:
            raise InputError(
                "prune.pattern 'found' keeps the zeros of the model, and prune.nested "
                "is off, which forgets them; leave one of the two out"
            )

    @property
    def options(self) -> dict[str, Any]:
        """The fields that are options of the solver, without its defaults."""
        return self.options_of(self.solver)

    def options_of(self, solver: str) -> dict[str, Any]:
        """The fields that are options of a solver, without its defaults."""
        known = inspect.signature(find_solver(solver, {})).parameters
        names = ("block_size", "damping", "iterations", "tolerance", "reference")
        values = {name: getattr(self, name) for name in names if name in known}
        return {name: value for name, value in values.items() if value is not None}

    @property
    def sequences_per_batch(self) -> int:
        """Calibration sequences that go through a block at a time."""
        return self.batch_size or max(1, _BATCH_TOKENS // self.sample_length)

    def pattern_rules(self) -> list[tuple[str, Pattern | None]]:
        """The rules with their values as patterns, None = dense."""
        return [(path, self._parse(value)) for path, value in self.rules]

    def _parse(self, value: str) -> Pattern | None:
        text = self.pattern if value == "pattern" else value
        if text in ("dense", FOUND):
            return None
        return parse(text, self.sparsity)
