"""What training through integer grids does."""

import dataclasses
import re
from typing import Any, Literal

from sparse_jax.quant import GridConfig
from sparse_jax.sparsity.adapters.leaves import KERNEL, QUANT_SCALE, QUANT_ZERO
from sparse_jax.tree import leaf_paths
from sparse_jax.types import InputError, Params

_SCALES, _ZEROS = f".*/{QUANT_SCALE}", f".*/{QUANT_ZERO}"
_NOT_GRIDS = rf"(?!.*/({QUANT_SCALE}|{QUANT_ZERO})$).*"


@dataclasses.dataclass(frozen=True, kw_only=True)
class QuantTrainConfig:
    """Training through integer grids, rounded straight through.

    Source: LSQ, https://arxiv.org/abs/1902.08153; the frozen codes of "scales":
    EfficientQAT, https://arxiv.org/abs/2407.11062, and GQSA's second stage,
    https://arxiv.org/abs/2412.17560

    Attributes:
      grid: of every quantised matrix.
      start: "fit" takes the range of the weights, "search" the clipped range that
        rounds them best, "parent" the grids that the parent was saved with.
      train: "all" leaves; "scales", those and zero points alone, while the codes stay;
        or "weights", and the scales always are those that fit them.
      scale_rate: learning rate of scales over that of the weights. A scale moves all
        weights of its group by a multiple of its own step.
      zero_rate: the same of zero points, which are counted in codes.
      targets: regular expressions of the paths of matrices, without their `/kernel`;
        with "parent" they are those that have a grid.
    """

    grid: GridConfig = GridConfig()
    start: Literal["fit", "search", "parent"] = "search"
    train: Literal["all", "scales", "weights"] = "all"
    scale_rate: float = 0.3
    zero_rate: float = 1.0
    targets: tuple[str, ...] = ("layers/.*",)

    def __post_init__(self):
        for name in ("scale_rate", "zero_rate"):
            if not getattr(self, name) >= 0:
                found = getattr(self, name)
                raise InputError(f"quantize.{name} must be >= 0, found {found!r}")
        if not self.targets:
            raise InputError(
                "quantize.targets is empty; name matrices, or leave quantize out"
            )
        for target in self.targets:
            try:
                re.compile(target)
            except re.error as error:
                raise InputError(
                    f"quantize.targets: {target!r} is no regular expression: {error}; "
                    "correct it"
                ) from error

    @property
    def refit(self) -> bool:
        """Whether the scales follow the weights, and do not train."""
        return self.train == "weights"

    @property
    def trained(self) -> tuple[str, ...]:
        """The scales and zero points that train, for `OptimizerConfig.trainable`."""
        if self.refit:
            return ()
        return (_SCALES,) if self.grid.symmetric else (_SCALES, _ZEROS)

    @property
    def trainable(self) -> tuple[str, ...] | None:
        """All that trains, for `OptimizerConfig.trainable`."""
        if self.train == "all":
            return None
        return self.trained or (_NOT_GRIDS,)

    @property
    def rates(self) -> tuple[tuple[str, float], ...]:
        """For `OptimizerConfig.rates`."""
        return ((_SCALES, self.scale_rate), (_ZEROS, self.zero_rate))

    def matrices(self, params: Params) -> dict[str, Any]:
        """The kernels that get a grid, by path of what they are in.

        Args:
          params: weights or their shapes, without such leaves.

        Raises:
          InputError: a target names no matrix, or one that is not a block's; or there
            are grids already.
        """
        leaves, found = leaf_paths(params), {}
        kernels = {
            path.removesuffix(f"/{KERNEL}"): leaf
            for path, leaf in leaves.items()
            if path.endswith(f"/{KERNEL}")
        }
        for target in self.targets:
            named = {n: k for n, k in kernels.items() if re.fullmatch(target, n)}
            if not named:
                raise InputError(
                    f"quantize.targets: {target!r} names none of the matrices "
                    f"{sorted(kernels)}; correct it, or leave it out"
                )
            found |= named
        for node, kernel in found.items():
            if len(kernel.shape) != 3:
                raise InputError(
                    f"quantize.targets: {node} is no matrix of the decoder blocks; "
                    "name those alone"
                )
            if f"{node}/{QUANT_SCALE}" in leaves:
                raise InputError(f"{node}/{QUANT_SCALE} is there already; add it once")
        return dict(sorted(found.items()))
