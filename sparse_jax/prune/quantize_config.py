"""What rounding the matrices of a model to integer grids does, after training."""

import dataclasses
import math
import re
from typing import ClassVar, Literal

from sparse_jax.prune.block_training import BlockTrainingConfig
from sparse_jax.quant import GridConfig
from sparse_jax.quant.activations import ActivationKind
from sparse_jax.types import InputError


@dataclasses.dataclass(frozen=True, kw_only=True)
class SmoothQuant:
    """Moves a share of the inputs' range into the weights; see `quant.smooth_scales`.

    Attributes:
      alpha: the share, in [0, 1].
    """

    kind: ClassVar[str] = "smoothquant"

    alpha: float = 0.5

    def __post_init__(self):
        if not 0 <= self.alpha <= 1:
            raise InputError(f"smooth.alpha must be in [0, 1], found {self.alpha!r}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Awq:
    """Scales up the weights of large inputs, as far as the error asks for it.

    See `quant.awq_scales`.

    Attributes:
      points: exponents that are tried, 0 to 1.
    """

    kind: ClassVar[str] = "awq"

    points: int = 20

    def __post_init__(self):
        if self.points < 2:
            raise InputError(f"smooth.points must be at least 2, found {self.points}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class LowRank:
    """A low-rank term for what pruning and rounding lost; see `quant.low_rank`.

    Attributes:
      rank: of the term, as a fraction of the smaller side of the matrix.
      grid: of its two factors; None keeps them in 16 bits.
    """

    rank: float = 0.1
    grid: GridConfig | None = None

    def __post_init__(self):
        if not 0 < self.rank <= 1:
            raise InputError(f"low_rank.rank must be in (0, 1], found {self.rank!r}")

    def size(self, n_in: int, n_out: int) -> int:
        """The rank for a matrix, at least 1."""
        return max(1, round(self.rank * min(n_in, n_out)))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outliers:
    """A few weights kept beside the rounded matrix in 16 bits; see `quant.outliers`.

    Attributes:
      fraction: of all weights of a matrix.
      by: "hessian", what rounding them would cost, or "magnitude".
    """

    fraction: float = 0.0045
    by: Literal["hessian", "magnitude"] = "hessian"

    def __post_init__(self):
        if not 0 < self.fraction < 1:
            raise InputError(
                f"outliers.fraction must be in (0, 1), found {self.fraction!r}"
            )

    def count(self, n_in: int, n_out: int) -> int:
        """How many of a matrix, at least 1."""
        return max(1, round(self.fraction * n_in * n_out))


@dataclasses.dataclass(frozen=True, kw_only=True)
class QuantizeConfig:
    """Rounds the linears of every decoder block to integer grids.

    Attributes:
      grid: of every matrix.
      method: "gptq" rounds column after column, and moves every error to the columns
        on its right; where a pattern prunes as well, in the same solve. "nearest"
        rounds what is kept to the nearest points.
      clip: "range" covers all weights of a group; "search" clips them where that loses
        less, see `quant.search`.
      smooth: scales that move between a matrix and what computes its inputs first.
      activations: how the inputs of rounded matrices are rounded to 8 bits when the
        model runs: "dynamic", "static", or None. Calibration does not round them.
      leave_out: regular expressions of matrices that stay in floats, in all layers,
        "layers/mlp/down/kernel", or in one, "layers/0/mlp/down/kernel".
      max_error: a matrix stays in floats where rounding adds more than this to its
        relative error; None = nowhere.
      low_rank: a low-rank correction, or None.
      outliers: weights that are not rounded, or None.
      tune: trains every block, its scales and zero points towards the outputs of the
        block that it was, after its solve; None = not at all.
    """

    grid: GridConfig = GridConfig()
    method: Literal["nearest", "gptq"] = "gptq"
    clip: Literal["range", "search"] = "range"
    smooth: SmoothQuant | Awq | None = None
    activations: ActivationKind | None = None
    leave_out: tuple[str, ...] = ()
    max_error: float | None = None
    low_rank: LowRank | None = None
    outliers: Outliers | None = None
    tune: BlockTrainingConfig | None = None

    def __post_init__(self):
        bound = self.max_error
        if bound is not None and not (math.isfinite(bound) and bound >= 0):
            raise InputError(f"quantize.max_error must be >= 0, found {bound!r}")
        if self.tune is not None and (self.low_rank or self.outliers):
            raise InputError(
                "quantize.tune trains rounded matrices alone; leave out low_rank and "
                "outliers, or tune"
            )
        for regex in self.leave_out:
            try:
                re.compile(regex)
            except re.error as error:
                raise InputError(
                    f"quantize.leave_out: {regex!r} is no regular expression ({error})"
                ) from None

    @property
    def reads_inputs(self) -> str | None:
        """The first setting that needs calibration text; None where none does."""
        needs = {
            "method 'gptq'": self.method == "gptq",
            "clip 'search'": self.clip == "search",
            "smooth": self.smooth is not None,
            "activations 'static'": self.activations == "static",
            "max_error": self.max_error is not None,
            "low_rank": self.low_rank is not None,
            "tune": self.tune is not None,
            "outliers": self.outliers is not None and self.outliers.by == "hessian",
        }
        return next((name for name, needed in needs.items() if needed), None)
