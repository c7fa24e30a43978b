"""The sparse product of a weight-streaming machine, with its cycle counts."""

from sparse_jax.kernels.weight_stream.costs import (
    COMPUTE,
    ROW,
    STALL,
    TRIGGER,
    Costs,
    slice_bounds,
)
from sparse_jax.kernels.weight_stream.kernel import (
    forward,
    input_gradient,
    weight_gradient,
)

__all__ = [
    "COMPUTE",
    "ROW",
    "STALL",
    "TRIGGER",
    "Costs",
    "forward",
    "input_gradient",
    "slice_bounds",
    "weight_gradient",
]
