"""How the inputs of quantised matrices are rounded."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Literal, get_args

from sparse_jax.types import InputError

ActivationKind = Literal["dynamic", "static"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Activations:
    """Inputs of quantised matrices as symmetric 8-bit integers.

        x' = scale * clip(round(x / scale), -127, 127)

    Attributes:
      kind: "dynamic", scale = max|x| / 127 for each token, or "static", one scale for
        all inputs of a matrix.
      scales: (leaf path, layer) -> the static scale of each quantised matrix.

    Example:
      >>> Activations().kind
      'dynamic'
    """

    kind: ActivationKind = "dynamic"
    scales: Mapping[tuple[str, int], float] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        if self.kind not in get_args(ActivationKind):
            raise InputError(
                f"activations.kind must be one of {list(get_args(ActivationKind))}, "
                f"found {self.kind!r}"
            )
        if self.kind == "dynamic" and self.scales:
            raise InputError("activations.scales are of the kind 'static', leave out")
        for (path, layer), scale in self.scales.items():
            if not (math.isfinite(scale) and scale > 0):
                raise InputError(
                    f"activations.scales: {path} of layer {layer} must be positive "
                    f"and finite, found {scale!r}"
                )
