"""The time of a whole step, layer by layer.

Every product of a matrix overlaps with its stream. Forward, weights stream in while
elements compute; backward, weights stream in for the input gradient while the weight
gradients of the same matrix stream out:

    forward   max(forward, weights in) + latency
    backward  max(input gradient + weight gradient, weights in, gradients out) + latency

A sparse matrix travels as values and indices, a dense one as values alone, whichever is
less; gradients travel as values, since both ends know the positions. The optimizer runs
where the weights are stored and adds no traffic to these three streams.

Attention, norms and other elementwise work run at a fixed share of the peak or of the
lanes; the head is a dense product like the others; the embedding is a stream of the
rows that occur.
"""

import dataclasses
import functools
import math

from sparse_jax.dataflow.cost import Cost, total
from sparse_jax.dataflow.machine import Machine
from sparse_jax.dataflow.masks import Masks, NoMasks, Stream, dense_stream
from sparse_jax.dataflow.products import Layout, layouts, place, product_cost
from sparse_jax.dataflow.workload import Matrix, Workload
from sparse_jax.types import InputError

Passes = dict[str, Cost]
"""forward; when training also recompute and backward, as far as they are counted."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Step:
    """The simulated time of one step on one system.

    Attributes:
      work: what was done.
      layout: where tokens and features lay.
      layers: of every layer, the passes of every matrix.
      kept: of every layer, the fraction of its prunable weights that are kept.
      head: of the output head.
      other: seconds of attention, elementwise work and embedding.
    """

    work: Workload
    layout: Layout
    layers: tuple[dict[str, Passes], ...]
    kept: tuple[float, ...]
    head: Cost
    other: dict[str, float]

    @functools.cached_property
    def matrices(self) -> Cost:
        """Of all prunable matrices."""
        return total(map(layer_cost, self.layers))

    @property
    def seconds(self) -> float:
        """Of the whole step."""
        return self.matrices.seconds + self.head.seconds + sum(self.other.values())

    @property
    def tokens_per_second(self) -> float:
        """Tokens read in a step, or written when decoding, over its time."""
        return self.work.tokens / self.seconds

    @property
    def kept_fraction(self) -> float:
        """Of the prunable weights of all layers."""
        return sum(self.kept) / len(self.kept)


def layer_cost(layer: dict[str, Passes]) -> Cost:
    """Of all matrices of a layer in all passes."""
    return total(cost for passes in layer.values() for cost in passes.values())


def weight_stream(machine: Machine, size: int, kept: int | float) -> float:
    """Seconds in which weights stream in: values and indices, or else all values.

    Args:
      machine: the machine.
      size: weights of a dense matrix.
      kept: those that are not zero.

    Example:
      >>> from sparse_jax.dataflow import machine
      >>> round(150 * weight_stream(machine("cs3"), 10**9, 2e8), 9)
      0.8
    """
    value, index = machine.value_bytes.value, machine.index_bytes.value
    sent = min(size * value, kept * (value + index))
    return sent / machine.stream_in_bytes_per_s.value


def simulate(
    machine: Machine,
    work: Workload,
    masks: Masks | None = None,
    *,
    systems: int = 1,
    layout: Layout | None = None,
) -> Step:
    """Simulates a step.

    Args:
      machine: the machine.
      work: the model and its batch.
      masks: its non-zeros; None = dense.
      systems: that work on a batch of their own each and share the weight stream.
      layout: where tokens and features lie; None = where the step takes least time,
        judged by the first layer.

    Raises:
      InputError: a mask does not match its weight, or there is no system.

    Example:
      >>> from sparse_jax.dataflow import machine
      >>> from sparse_jax.models import sizes
      >>> work = Workload(model=sizes.get("tiny"), batch=64, context=256)
      >>> step = simulate(machine("cs3").ideal(), work)
      >>> round(work.flops() / step.seconds / 1e15, 1)  # the peak, PF/s
      15.5
    """
    if systems < 1:
        raise InputError(f"systems must be at least 1, found {systems}")
    masks = NoMasks() if masks is None else masks
    run = _Simulation(machine=machine, work=work, masks=masks, systems=systems)
    if layout is None:
        layout = run.best_layout()
    return run.step(layout, layers=masks.layers)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Simulation:
    machine: Machine
    work: Workload
    masks: Masks
    systems: int

    def best_layout(self) -> Layout:
        """Where a step of the first layer takes least time."""
        choices = layouts(self.machine, self.work.tokens)
        if self.machine.even:  # they do not differ
            return choices[0]
        floors = [self.step(choice, waiting=False).seconds for choice in choices]
        best, least = choices[0], math.inf
        for floor, _, choice in sorted(zip(floors, range(99), choices, strict=False)):
            if floor >= least:
                break
            seconds = self.step(choice).seconds
            if seconds < least:
                best, least = choice, seconds
        return best

    def step(self, layout: Layout, *, layers: int = 1, waiting: bool = True) -> Step:
        """A step whose first `layers` layers stand for all."""
        work, done, found, kept = self.work, {}, [], []
        for layer in range(layers):
            passes, weights = {}, 0.0
            for matrix in work.matrices:
                key = self.masks.key(layer, matrix)
                stream = self.masks.stream(layer, matrix)
                if key not in done:
                    other = self.masks.stream(layer, matrix, transposed=True)
                    done[key] = self._passes(layout, matrix, stream, other, waiting)
                passes[matrix.path] = done[key]
                weights += stream.weights
            found.append(passes)
            kept.append(weights / work.layer_weights)
        copies = work.model.n_layers if layers == 1 else 1
        return Step(
            work=work,
            layout=layout,
            layers=tuple(found * copies),
            kept=tuple(kept * copies),
            head=self._head(layout, waiting),
            other=self._other(),
        )

    def _passes(
        self,
        layout: Layout,
        matrix: Matrix,
        stream: Stream,
        transposed: Stream,
        waiting: bool,
    ) -> Passes:
        """The passes of one matrix, with what the link adds."""
        machine, work = self.machine, self.work
        cost = functools.partial(product_cost, machine, layout, waiting=waiting)
        weights_in = weight_stream(machine, matrix.size, stream.weights)
        passes = {"forward": self._linked(cost("forward", stream), weights_in)}
        if not work.training:
            return passes
        if work.recompute:
            passes["recompute"] = passes["forward"]
        if work.weight_gradient == "dense":
            stream = dense_stream(matrix)
        gradient_bytes = stream.weights * machine.value_bytes.value
        gradients_out = gradient_bytes / machine.stream_out_bytes_per_s.value
        backward = cost("input_gradient", transposed) + cost("weight_gradient", stream)
        passes["backward"] = self._linked(backward, max(weights_in, gradients_out))
        return passes

    def _linked(self, cost: Cost, link: float) -> Cost:
        """Adds what a product does not hide of its time on the link."""
        exposed = max(0.0, link - (cost.seconds - cost.latency))
        # Every doubling of the systems makes the tree to them one level deeper.
        levels = math.ceil(math.log2(self.systems))
        hops = levels * self.machine.system_hop_s.value
        return cost + Cost(stream=exposed, latency=hops)

    def _head(self, layout: Layout, waiting: bool) -> Cost:
        model = self.work.model
        head = Matrix(path="head", outputs=model.vocab_size, inputs=model.d_model)
        layout = place(self.machine, self.work.head_tokens, layout.groups)
        streams = dense_stream(head), dense_stream(head, transposed=True)
        passes = self._passes(layout, head, *streams, waiting)
        passes.pop("recompute", None)  # the loss follows at once
        return total(passes.values())

    def _other(self) -> dict[str, float]:
        machine, work = self.machine, self.work
        lanes = machine.grid_rows.value * machine.grid_columns.value
        lanes *= machine.lanes.value * machine.clock_hz.value
        passes = (4 if work.recompute else 3) if work.training else 1
        repeats = passes * work.model.n_layers
        attention = work.attention_flops / (2 * lanes * machine.dense_efficiency.value)
        elementwise = (
            work.elementwise_operations * machine.elementwise_cycles.value / lanes
        )
        rows = min(work.tokens, work.model.vocab_size) * work.model.d_model
        size = rows * machine.value_bytes.value
        embedding = size / machine.stream_in_bytes_per_s.value
        if work.training:
            embedding += size / machine.stream_out_bytes_per_s.value
        return {
            "attention": repeats * attention,
            "elementwise": repeats * elementwise,
            "embedding": embedding,
        }
