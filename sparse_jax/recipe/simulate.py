"""What a run's masks would gain on a machine that streams weights and skips zeros."""

import pathlib
from typing import Any

from sparse_jax import dataflow
from sparse_jax.models import LlamaConfig, sizes
from sparse_jax.recipe.config import Recipe


def check_report(recipe: Recipe, model: LlamaConfig) -> None:
    """Raises InputError for a machine, a size or a model that cannot be simulated.

    Args:
      recipe: what its `report` asks for.
      model: architecture of the final stage.
    """
    if recipe.report.machine is None:
        return
    machine = dataflow.machine(recipe.report.machine)
    dataflow.fit(machine, model)
    if recipe.report.scale_to is not None:
        dataflow.fit(machine, sizes.get(recipe.report.scale_to))


def simulations(recipe: Recipe, directory: pathlib.Path) -> list[dict[str, Any]]:
    """Simulates the final model, and a larger one at the same sparsity.

    Args:
      recipe: its `report` says on which machine; none asks for no simulation.
      directory: of the run, whose final stage has finished.

    Returns:
      Numbers of `dataflow.sweep` with the name of the model.
    """
    if recipe.report.machine is None:
        return []
    machine = dataflow.machine(recipe.report.machine)
    final = dataflow.find(str(directory / recipe.final), None)
    work = dataflow.fit(machine, final.model)
    own = dataflow.sweep(machine, work, final.masks, first_layer=final.first_layer)
    found = [{"model": recipe.final} | own]
    if recipe.report.scale_to is not None:
        # SparseGPT's masks are exact in sparsity, and rounded to whole weights.
        sparsity = round(own["rows"][0]["sparsity"], 3)
        drawn = dataflow.DrawnMasks("sparsegpt", sparsity, recipe.seed)
        work = dataflow.fit(machine, sizes.get(recipe.report.scale_to))
        scaled = dataflow.sweep(machine, work, [drawn], seed=recipe.seed)
        found.append({"model": recipe.report.scale_to} | scaled)
    return found
