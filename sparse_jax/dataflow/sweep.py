"""Speed-up against sparsity, beside its ideals: the numbers of launch/simulate.py.

Every speed-up is over the same machine with the same model, batch and context and no
weight missing, in the layout that suits the dense model best.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from sparse_jax.dataflow import memory
from sparse_jax.dataflow.cost import CAUSES, total
from sparse_jax.dataflow.machine import Machine
from sparse_jax.dataflow.masks import DrawnMasks, Masks
from sparse_jax.dataflow.sensitivity import Case, sensitivity
from sparse_jax.dataflow.throughput import (
    Passes,
    Step,
    layer_cost,
    simulate,
    weight_stream,
)
from sparse_jax.dataflow.workload import Workload

Numbers = dict[str, Any]

Layer = dict[str, Passes]

COMPARED = ("uniform", "balanced", "sparsegpt")
"""Kinds of drawn masks that show what balance is worth."""


def sweep(
    machine: Machine,
    work: Workload,
    masks: Sequence[Masks],
    *,
    systems: int = 1,
    seed: int = 0,
    uncertainty: bool = True,
    first_layer: Masks | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Numbers:
    """Simulates a model with each of some masks, and dense.

    Args:
      machine: the machine.
      work: the model and its batch, which must fit.
      masks: at least one.
      systems: that work on a batch of their own each.
      seed: of the masks that are drawn to compare with.
      uncertainty: whether to vary the machine's uncertain constants.
      first_layer: masks that stand for `masks[0]` where constants are varied; None =
        the masks themselves.
      progress: called as (done, total) after every part.

    Returns:
      Plain data: machine, work, dense, rows (one per mask), balance, sensitivity.

    Raises:
      InputError: the batch does not fit, or a mask does not match its weight.
    """
    memory.check(machine, work)
    varied = len(list(machine.uncertain())) + len(masks) if uncertainty else 0
    advance = _counter(1 + 2 * len(masks) + varied, progress)
    dense = simulate(machine, work, systems=systems)
    advance()
    steps, balance = [], []
    for mask in masks:
        steps.append(simulate(machine, work, mask, systems=systems))
        advance()
        balance.append(_balance(machine, dense, steps[-1], mask, systems, seed))
        advance()
    ranges = None
    if uncertainty:
        case = Case(work=work, systems=systems)
        kept = [step.kept_fraction for step in steps]
        stand_ins = [first_layer or masks[0], *masks[1:]]
        ranges = sensitivity(machine, case, stand_ins, kept, advance)
    rows = [
        {"masks": mask.name, **_step(machine, step, systems), **_against(dense, step)}
        for mask, step in zip(masks, steps, strict=True)
    ]
    return {
        "machine": describe(machine),
        "work": _work(machine, work, systems),
        "dense": _step(machine, dense, systems),
        "rows": rows,
        "balance": balance,
        "sensitivity": ranges,
    }


def _counter(
    total: int, progress: Callable[[int, int], None] | None
) -> Callable[[], None]:
    """Calls `progress` with one part more than the time before."""
    done = itertools.count(1)

    def advance() -> None:
        if progress is not None:
            progress(next(done), total)

    return advance


def describe(machine: Machine) -> Numbers:
    """A machine's constants as plain data."""
    constants = {
        name: dataclasses.asdict(constant)
        for name, constant in machine.constants().items()
    }
    return {"name": machine.name, "constants": constants}


def _work(machine: Machine, work: Workload, systems: int) -> Numbers:
    return {
        "mode": work.mode,
        "batch": work.batch,
        "context": work.context,
        "tokens": work.tokens,
        "systems": systems,
        "weight_gradient": work.weight_gradient if work.training else None,
        "recompute": work.recompute,
        "largest_batch": memory.largest_batch(machine, work),
        "activation_bytes": memory.resident_bytes(machine, work),
        "activation_room": memory.room(machine),
    }


def _step(machine: Machine, step: Step, systems: int) -> Numbers:
    """One step: times, rates, what the time goes to."""
    causes = {name: getattr(step.matrices, name) for name in CAUSES}
    return {
        "sparsity": 1 - step.kept_fraction,
        "seconds": step.seconds,
        "tokens_per_second": systems * step.tokens_per_second,
        "flops_per_second": step.work.flops(step.kept_fraction) / step.seconds,
        "groups": step.layout.groups,
        "columns": step.layout.columns,
        "tokens_held": step.layout.held,
        "crossover": _crossover(machine, step),
        "causes": causes | {"head": step.head.seconds} | step.other,
    }


def _against(dense: Step, step: Step) -> Numbers:
    """Speed-ups over the dense model, of all, of every kind of matrix, by layer."""
    kept, work = step.kept_fraction, step.work
    matrices = dense.matrices.seconds / step.matrices.seconds
    ideal = work.ideal_matrix_speedup(kept)
    whole = dense.seconds / step.seconds
    gradients = {
        kind: dataclasses.replace(work, weight_gradient=kind).ideal_speedup(kept)
        for kind in ("kept", "dense")
    }
    return {
        "ideal": 1 / kept,
        "matrices": matrices,
        "matrices_ideal": ideal,
        "matrices_efficiency": matrices / ideal,
        "step": whole,
        "step_ideal": work.ideal_speedup(kept),
        "step_efficiency": whole / work.ideal_speedup(kept),
        "step_ideals": gradients,
        "by_matrix": _by_matrix(dense, step),
        "by_layer": [
            _layer_row(work, layer, fraction, dense.layers[0])
            for layer, fraction in zip(step.layers, step.kept, strict=True)
        ],
    }


def _layer_row(work: Workload, layer: Layer, kept: float, dense: Layer) -> Numbers:
    speedup = layer_cost(dense).seconds / layer_cost(layer).seconds
    ideal = work.ideal_matrix_speedup(kept)
    return {
        "sparsity": 1 - kept,
        "seconds": layer_cost(layer).seconds,
        "speedup": speedup,
        "efficiency": speedup / ideal,
    }


def _by_matrix(dense: Step, step: Step) -> list[Numbers]:
    rows = []
    for matrix in step.work.matrices:
        before = _seconds(layer[matrix.path] for layer in dense.layers)
        after = _seconds(layer[matrix.path] for layer in step.layers)
        row = {"path": matrix.path, "dense_seconds": before, "seconds": after}
        rows.append(row | {"speedup": before / after})
    return rows


def _seconds(matrices: Iterable[Passes]) -> float:
    return sum(total(passes.values()).seconds for passes in matrices)


def _balance(
    machine: Machine, dense: Step, step: Step, masks: Masks, systems: int, seed: int
) -> Numbers:
    """The same sparsity and layout with masks of every kind."""
    sparsity = max(0.0, 1 - step.kept_fraction)
    row: Numbers = {"sparsity": sparsity}
    for kind in COMPARED:
        drawn = masks if masks.name == kind else DrawnMasks(kind, sparsity, seed)
        options = {"systems": systems, "layout": step.layout}
        found = simulate(machine, step.work, drawn, **options)
        row[kind] = {
            "matrices": dense.matrices.seconds / found.matrices.seconds,
            "step": dense.seconds / found.seconds,
            "imbalance": found.matrices.imbalance / found.matrices.seconds,
        }
    return row


def _crossover(machine: Machine, step: Step) -> float:
    """Tokens from which a layer's forward computation hides its weight stream.

    Computation grows with the tokens, the stream does not: tokens x stream time /
    computation time of the forward pass of the first layer.
    """
    work, layer = step.work, step.layers[0]
    busy = total(passes["forward"] for passes in layer.values())
    seconds = busy.seconds - busy.stream - busy.latency
    stream = weight_stream(
        machine, work.layer_weights, step.kept[0] * work.layer_weights
    )
    return work.tokens * stream / seconds
