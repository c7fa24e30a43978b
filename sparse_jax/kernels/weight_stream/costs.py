"""What a command of the weight stream costs a processing element, and how work splits.

The execution model, which the kernel, its reference and the closed form
(`sparse_jax.dataflow.timeline`) all implement. A product Y[T, O] = X[T, I] W[O, I]^T
runs on R x C processing elements: column c holds slice c of the inputs, row r slice r
of the tokens. The non-zeros of W arrive in order of (o, i); each goes to the column
that holds i and triggers `acc_o += w x[:, i]` on every element of it. After the last
weight of row o an element hands its sum to a reduction over the columns. In cycles:

    start(o, c)  = max(finish(o - 1, c), done(o - rows_in_flight))       done(< 0) = 0
    finish(o, c) = start(o, c) + nnz(o, c) (compute + trigger) + row
    done(o)      = max over c of finish(o, c) + reduction
    total        = done(O - 1)

so a column may run at most `rows_in_flight` rows ahead of the reductions, whose partial
sums it keeps; what is left of the total is stall. PE rows do not wait for each other.

The input gradient is the same product with the transposed mask. In the weight gradient
a non-zero triggers a DOT of the output's gradient with x[:, i] instead, whose parts are
summed over the PE rows; its clocks are the same.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from sparse_jax.types import InputError

COMPUTE, TRIGGER, ROW, STALL = range(4)
"""Columns of a table of cycle counts."""


@dataclass(frozen=True, kw_only=True)
class Costs:
    """Cycles of one processing element of a PE row, for one product.

    Attributes:
      compute: arithmetic of one non-zero: an AXPY or a DOT over the element's tokens.
      trigger: cycles between the arrival of a non-zero and its arithmetic.
      row: cycles of an end-of-row command.
      reduction: from the last partial sum of a row to the end of its reduction.
      rows_in_flight: rows whose partial sums are kept at a time; 1 is lock step, None
        is without limit.
    """

    compute: int
    trigger: int = 0
    row: int = 0
    reduction: int = 0
    rows_in_flight: int | None = None

    def __post_init__(self):
        for name in ("compute", "trigger", "row", "reduction"):
            if getattr(self, name) < 0:
                raise InputError(
                    f"costs.{name} must be >= 0 cycles, found {getattr(self, name)}"
                )
        if self.rows_in_flight is not None and self.rows_in_flight < 1:
            raise InputError(
                "costs.rows_in_flight must be at least 1, or None for no limit, "
                f"found {self.rows_in_flight}"
            )

    @property
    def weight(self) -> int:
        """Cycles of one non-zero."""
        return self.compute + self.trigger


def slice_bounds(total: int, parts: int) -> Int[np.ndarray, "parts_plus_1"]:
    """Bounds of consecutive slices of equal size up to one, larger ones first.

    Slice p is [bounds[p], bounds[p + 1]); with more parts than things some are empty.

    Raises:
      InputError: there are no parts.

    Example:
      >>> slice_bounds(10, 4).tolist()
      [0, 3, 6, 8, 10]
    """
    if parts < 1:
        raise InputError(f"parts must be at least 1 to slice {total}, found {parts}")
    size, larger = divmod(total, parts)
    p = np.arange(parts + 1)
    return p * size + np.minimum(p, larger)
