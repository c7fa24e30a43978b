"""What one pruning run does."""

import math
from dataclasses import dataclass
from typing import Any

from sparse_jax.solvers import find_solver
from sparse_jax.sparsity import Pattern, parse
from sparse_jax.types import InputError

LINEARS = r"layers/(attention/(q|k|v|o)|mlp/(gate|up|down))/kernel"
"""Paths of the seven matrices of a decoder block."""


@dataclass(frozen=True, kw_only=True)
class PruneConfig:
    """One-shot pruning of a model.

    Attributes:
      solver: "magnitude", "wanda" or "sparsegpt".
      pattern: "unstructured", "N:M" (N kept of every M inputs), "group:SIZE" or
        "block:INxOUT".
      sparsity: fraction of zeros in every pruned matrix, in [0, 1); N:M fixes its own.
      block_size: columns that SparseGPT ranks together; None = its default.
      damping: SparseGPT's relative damping of the Hessian.
      reference: SparseGPT with the public implementation's exact thresholds.
      nested: weights pruned before stay pruned.
      samples: calibration sequences.
      sample_length: tokens of each.
      seed: which calibration sequences are drawn.
      batch_size: sequences that go through a block at a time.
      rules: ordered (path regex, value) pairs; the first full match wins and every leaf
        must be covered. Values: "pattern" (the fields above), "dense", or a pattern of
        its own such as "2:4" or "unstructured@0.6".
    """

    solver: str = "sparsegpt"
    pattern: str = "unstructured"
    sparsity: float = 0.5
    block_size: int | None = None
    damping: float = 0.01
    reference: bool = False
    nested: bool = True
    samples: int = 128
    sample_length: int = 128
    seed: int = 0
    batch_size: int = 16
    rules: tuple[tuple[str, str], ...] = ((LINEARS, "pattern"), (".*", "dense"))

    def __post_init__(self):
        if not 0.0 <= self.sparsity < 1.0:
            raise InputError(
                f"prune.sparsity must be in [0, 1), found {self.sparsity!r}"
            )
        for name in ("samples", "sample_length", "batch_size"):
            if getattr(self, name) < 1:
                raise InputError(
                    f"prune.{name} must be at least 1, found {getattr(self, name)}"
                )
        if self.block_size is not None and self.block_size < 1:
            raise InputError(
                f"prune.block_size must be at least 1, found {self.block_size}"
            )
        if not (math.isfinite(self.damping) and self.damping >= 0):
            raise InputError(f"prune.damping must be >= 0, found {self.damping}")
        find_solver(self.solver, self.options)
        self.pattern_rules()

    @property
    def options(self) -> dict[str, Any]:
        """The solver's own options."""
        if self.solver != "sparsegpt":
            return {}
        return {
            "block_size": self.block_size,
            "damping": self.damping,
            "reference": self.reference,
        }

    def pattern_rules(self) -> list[tuple[str, Pattern | None]]:
        """The rules with their values as patterns, None = dense."""
        return [(path, self._parse(value)) for path, value in self.rules]

    def _parse(self, value: str) -> Pattern | None:
        if value == "dense":
            return None
        text = self.pattern if value == "pattern" else value
        return parse(text, self.sparsity)
