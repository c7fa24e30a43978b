"""Carries out an allocation: measures the dense blocks, then gives out the sparsity."""

import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any

from sparse_jax.files import read_lines, write_line
from sparse_jax.prune.activations import Activations
from sparse_jax.prune.allocate import Row, allocate
from sparse_jax.prune.blockwise import Blocks, name_block, place_layer, walk
from sparse_jax.prune.config import PruneConfig
from sparse_jax.prune.plan import LayerMasks, Plan
from sparse_jax.prune.sensitivity import measure
from sparse_jax.types import Params


def spread_sparsity(
    plan: Plan,
    blocks: Blocks,
    layer_masks: Callable[[int], LayerMasks],
    tokens: Any,
    config: PruneConfig,
    log: pathlib.Path | None,
    **options: Any,
) -> Plan:
    """The plan with the sparsities that `config.allocation` chooses.

    The dense model is walked once, and every block is measured on its dense inputs.

    Args:
      plan: with the same sparsity everywhere.
      blocks: the model.
      layer_masks: index -> what is pruned already and must stay so.
      tokens: calibration sequences [samples, length].
      config: the allocation, and what it measures with.
      log: JSON-lines file with a line per measured block: read, and added to.
      **options: of `walk`.
    """
    n_layers = blocks.config.n_layers
    measured = read_lines(log) if log is not None else []

    def measure_block(index: int, layer_params: Params, inputs: Activations) -> Params:
        free = plan.free[index]
        priors = place_layer(layer_masks(index))
        rows: list[Row] = []
        if free:
            arguments = (layer_params, inputs, free, priors, blocks.config, config)
            with name_block(index):
                rows = measure(*arguments)
        measured.append({"layer": index, "rows": rows})
        if log is not None:
            write_line(log, measured[-1])
        return layer_params

    if len(measured) < n_layers:
        options["first"] = len(measured)
        walk(blocks, tokens, action=measure_block, **options)
    rows = [line["rows"] for line in measured]
    sparsities = allocate(rows, config.sparsity, config.allocation)
    layers = [
        patterns
        | {
            path: dataclasses.replace(free[path], sparsity=sparsity)  # pyrefly: ignore
            for path, sparsity in chosen.items()
        }
        for patterns, free, chosen in zip(
            plan.layers, plan.free, sparsities, strict=True
        )
    ]
    return plan._replace(layers=layers)
