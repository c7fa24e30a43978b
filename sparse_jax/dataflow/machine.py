"""A weight-streaming machine in numbers, each with its unit, range and source."""

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass

from sparse_jax.kernels.weight_stream.costs import Costs
from sparse_jax.types import InputError

STATUSES = ("published", "derived", "assumed")
PRODUCTS = ("forward", "input_gradient", "weight_gradient")


@dataclass(frozen=True, kw_only=True)
class Constant:
    """One number of a machine.

    Attributes:
      value: what the model uses.
      unit: of the value.
      low: smallest value that the sources leave possible.
      high: largest.
      status: "published" by the maker or by its users, "derived" from published
        numbers by arithmetic, or "assumed".
      source: where it comes from, or the reason for it.
    """

    value: int | float
    unit: str
    low: int | float
    high: int | float
    status: str
    source: str

    def __post_init__(self):
        if not self.low <= self.value <= self.high:
            raise InputError(
                f"a constant's value must be in its range [{self.low}, {self.high}], "
                f"found {self.value} {self.unit}"
            )
        if self.status not in STATUSES:
            raise InputError(f"status must be one of {STATUSES}, found {self.status!r}")


@dataclass(frozen=True, kw_only=True)
class Machine:
    """A grid of processing elements that weights are streamed through.

    Attributes:
      name: for tables.
      grid_rows: elements of a column: the tokens are split over them.
      grid_columns: elements of a row: the features are split over them.
      clock_hz: of an element.
      lanes: FP16 multiply-adds an element starts per cycle.
      sram_bytes: memory of an element.
      sram_reserved_bytes: of it, for program and buffers.
      partial_sum_sram_bytes: of it, for partial sums of the rows in flight.
      sram_bytes_per_cycle: that memory's reads and writes per cycle.
      sram_bytes_per_token: of memory traffic for one multiply-add of an AXPY or DOT.
      value_bytes: of a streamed weight or gradient.
      index_bytes: of its position in the row.
      activation_bytes: of one resident activation.
      partial_sum_bytes: of one partial sum of an output.
      stream_in_bytes_per_s: weights on their way to the wafer.
      stream_out_bytes_per_s: gradients on their way from it.
      trigger_cycles: from the arrival of a non-zero to its arithmetic.
      row_cycles: of an end-of-row command, whatever the tokens.
      row_vector_cycles: of an end-of-row command for each `lanes` tokens: forward and
        input gradient hand a partial sum on, the weight gradient takes a gradient in.
      hop_cycles: latency of a reduction for each element it passes.
      dot_reduce_cycles: summing the lanes of a DOT.
      rows_in_flight: rows whose partial sums an element keeps; infinite = no limit.
      dense_efficiency: of peak, for attention.
      layer_latency_s: filling and draining the grid, for each product.
      elementwise_cycles: of an operation of norms, softmax, SiLU and rotary embedding
        on each `lanes` values.
      system_hop_s: latency of each level of the tree that joins several systems.
      even: whether work spreads over all elements without remainder: the ideal machine
        alone, whose elements never wait.
    """

    name: str
    grid_rows: Constant
    grid_columns: Constant
    clock_hz: Constant
    lanes: Constant
    sram_bytes: Constant
    sram_reserved_bytes: Constant
    partial_sum_sram_bytes: Constant
    sram_bytes_per_cycle: Constant
    sram_bytes_per_token: Constant
    value_bytes: Constant
    index_bytes: Constant
    activation_bytes: Constant
    partial_sum_bytes: Constant
    stream_in_bytes_per_s: Constant
    stream_out_bytes_per_s: Constant
    trigger_cycles: Constant
    row_cycles: Constant
    row_vector_cycles: Constant
    hop_cycles: Constant
    dot_reduce_cycles: Constant
    rows_in_flight: Constant
    dense_efficiency: Constant
    layer_latency_s: Constant
    elementwise_cycles: Constant
    system_hop_s: Constant
    even: bool = False

    def constants(self) -> dict[str, Constant]:
        """All constants by field name."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return {k: value for k, value in values.items() if isinstance(value, Constant)}

    def uncertain(self) -> Iterator[tuple[str, Constant]]:
        """(field, constant) of every constant whose range is more than its value.

        Example:
          >>> from sparse_jax.dataflow.presets import machine
          >>> next(machine("cs3").uncertain())[0]
          'clock_hz'
        """
        for name, constant in self.constants().items():
            if constant.low < constant.high:
                yield name, constant

    def replace(self, **values: int | float) -> "Machine":
        """The machine with other values; a range stretches where one leaves it.

        Raises:
          InputError: no such constant.

        Example:
          >>> from sparse_jax.dataflow.presets import machine
          >>> machine("cs3").replace(lanes=4).axpy_cycles(64)
          16
        """
        known = self.constants()
        for name in values.keys() - known.keys():
            raise InputError(f"no constant {name!r}; a machine has {list(known)}")
        return dataclasses.replace(
            self,
            **{
                name: dataclasses.replace(
                    known[name],
                    value=value,
                    low=min(value, known[name].low),
                    high=max(value, known[name].high),
                )
                for name, value in values.items()
            },
        )

    def ideal(self) -> "Machine":
        """The machine with every overhead gone: peak arithmetic is what is left."""
        return dataclasses.replace(self.replace(**IDEAL), even=True)

    def axpy_cycles(self, tokens: int) -> int:
        """Cycles of acc += w x over `tokens` tokens: the slower of lanes and SRAM.

            max(ceil(tokens / lanes), ceil(tokens bytes_per_token / bytes_per_cycle))

        A DOT over as many takes as long. Example:

        >>> from sparse_jax.dataflow.presets import machine
        >>> machine("cs3").axpy_cycles(96), machine("cs2").axpy_cycles(96)
        (12, 24)
        """
        moved = tokens * self.sram_bytes_per_token.value
        return max(
            self.vectors(tokens), math.ceil(moved / self.sram_bytes_per_cycle.value)
        )

    def vectors(self, tokens: int) -> int:
        """Vectors of `lanes` that hold `tokens` tokens."""
        return math.ceil(tokens / self.lanes.value)

    def costs(self, product: str, *, tokens: int, rows: int, columns: int) -> Costs:
        """Cycle costs of an element in one product of a layer.

        Args:
          product: "forward", "input_gradient" or "weight_gradient".
          tokens: that the element holds.
          rows: elements that a weight gradient is summed over.
          columns: elements that an output is summed over.

        Raises:
          InputError: no such product.

        Example:
          >>> from sparse_jax.dataflow.presets import machine
          >>> machine("cs3").costs("forward", tokens=96, rows=8, columns=64)
          Costs(compute=12, trigger=1, row=20, reduction=64, rows_in_flight=64)
        """
        if product not in PRODUCTS:
            raise InputError(f"product must be one of {PRODUCTS}, found {product!r}")
        gradient = product == "weight_gradient"
        lanes_sum = self.dot_reduce_cycles.value if gradient else 0
        hops = rows if gradient else columns
        row = self.row_cycles.value
        row += self.row_vector_cycles.value * self.vectors(tokens)
        window = self.rows_in_flight.value
        return Costs(
            compute=self.axpy_cycles(tokens) + math.ceil(lanes_sum),
            trigger=math.ceil(self.trigger_cycles.value),
            row=math.ceil(row),
            reduction=math.ceil(self.hop_cycles.value * hops),
            rows_in_flight=None if math.isinf(window) else int(window),
        )


IDEAL = {
    "sram_bytes_per_cycle": math.inf,
    "index_bytes": 0,
    "stream_in_bytes_per_s": math.inf,
    "stream_out_bytes_per_s": math.inf,
    "trigger_cycles": 0,
    "row_cycles": 0,
    "row_vector_cycles": 0,
    "hop_cycles": 0,
    "dot_reduce_cycles": 0,
    "rows_in_flight": math.inf,
    "dense_efficiency": 1.0,
    "layer_latency_s": 0.0,
    "elementwise_cycles": 0,
    "system_hop_s": 0.0,
}
"""The value of each overhead at which it is gone; away from it, a step takes longer."""
