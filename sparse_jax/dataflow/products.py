"""One product of a layer on the machine: where it lies, and what its time goes to.

The grid may be split into G groups of columns. Each group holds all features of its
tokens: C / G columns share the features, G R rows of elements the tokens. With one
group an element of a wafer's 762 columns holds five or six of 4096 features, and waits
for the column that happens to hold more non-zeros of a row; with many groups it holds
few tokens, and what a row or a non-zero costs weighs more.
"""

import dataclasses
import math

from sparse_jax.dataflow.cost import Cost
from sparse_jax.dataflow.machine import Machine
from sparse_jax.dataflow.masks import Stream
from sparse_jax.kernels.weight_stream.costs import Costs


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layout:
    """How tokens and features lie on the grid.

    Attributes:
      groups: G, groups of columns, each with all features.
      columns: of a group; they share the features.
      rows: of elements, over all groups; they share the tokens.
      tokens: on the whole grid.
    """

    groups: int
    columns: int
    rows: int
    tokens: int

    @property
    def held(self) -> int:
        """Tokens of the element that holds most."""
        return math.ceil(self.tokens / self.rows)


def place(machine: Machine, tokens: int, groups: int) -> Layout:
    """The layout of so many tokens over so many groups.

    Example:
      >>> from sparse_jax.dataflow import machine
      >>> place(machine("cs3"), 131_072, 2).held
      56
    """
    return Layout(
        groups=groups,
        columns=int(machine.grid_columns.value) // groups,
        rows=int(machine.grid_rows.value) * groups,
        tokens=tokens,
    )


def layouts(machine: Machine, tokens: int) -> list[Layout]:
    """Those worth a try: powers of two, until no element holds more than one token."""
    found = []
    for power in range(int(machine.grid_columns.value).bit_length()):
        found.append(place(machine, tokens, 2**power))
        if found[-1].held == 1:
            break
    return found


def product_cost(
    machine: Machine,
    layout: Layout,
    product: str,
    stream: Stream,
    *,
    waiting: bool = True,
) -> Cost:
    """What the elements do in one product, the link apart.

    Args:
      machine: the machine.
      layout: where tokens and features lie.
      product: "forward", "input_gradient" or "weight_gradient".
      stream: the non-zeros.
      waiting: False leaves out all waiting, which is quick and never more.
    """
    costs = element_costs(machine, layout, product, stream)
    columns, compute = layout.columns, float(costs.compute)
    if machine.even:
        columns = machine.grid_columns.value / layout.groups
        compute = _fraction(machine, layout, product)
    weights = stream.weights / columns  # of a column, on average
    total = None
    if waiting and not machine.even:
        total, weights = stream.run(layout.columns, costs)
    cycles = {
        "compute": weights * compute,
        "trigger": weights * costs.trigger,
        "rows": float(stream.rows * costs.row),
    }
    busy = sum(cycles.values())
    cycles["imbalance"] = costs.reduction if total is None else total - busy
    seconds = {name: value / machine.clock_hz.value for name, value in cycles.items()}
    return Cost(**seconds, latency=machine.layer_latency_s.value)


def element_costs(
    machine: Machine, layout: Layout, product: str, stream: Stream
) -> Costs:
    """Cycles of an element, and its rows in flight as far as its memory holds them.

    Forward and for the input gradient it keeps a partial sum of every token it holds
    for each row in flight; for the weight gradient one of every weight.
    """
    # Groups lie side by side: a weight gradient is summed down, then across them.
    down = int(machine.grid_rows.value + machine.grid_columns.value) - layout.columns
    costs = machine.costs(
        product, tokens=layout.held, rows=down, columns=layout.columns
    )
    if costs.rows_in_flight is None:
        return costs
    kept = layout.held
    if product == "weight_gradient":
        kept = math.ceil(stream.weights / (stream.rows * layout.columns))
    row_bytes = max(1, kept) * machine.partial_sum_bytes.value
    room = max(1, int(machine.partial_sum_sram_bytes.value / row_bytes))
    return dataclasses.replace(costs, rows_in_flight=min(costs.rows_in_flight, room))


def _fraction(machine: Machine, layout: Layout, product: str) -> float:
    """Cycles of one non-zero where tokens may be split without remainder."""
    held = layout.tokens / layout.rows
    moved = held * machine.sram_bytes_per_token.value
    cycles = max(held / machine.lanes.value, moved / machine.sram_bytes_per_cycle.value)
    if product == "weight_gradient":
        cycles += machine.dot_reduce_cycles.value
    return cycles
