"""How much a dense block suffers from pruning: what the allocation of sparsity needs.

For "output", an error's way to the end of the model is followed block by block. What
pruning one matrix does is measured at the end of its own block, relative to each
token's activation y, because the next block normalises its inputs per token:

    error = mean_t |y'_t - y_t|^2 / |y_t|^2

and by how much a block multiplies the error of its inputs, its gain, by perturbing
them. Errors at the model's end are about those times the gains of all later blocks.
"""

import math
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from sparse_jax import mesh as mesh_lib
from sparse_jax.models import INPUTS, LlamaConfig
from sparse_jax.ops import effective_weight
from sparse_jax.prune.activations import Activations
from sparse_jax.prune.allocate import Row, count_units, exact_sparsity
from sparse_jax.prune.blockwise import run_block
from sparse_jax.prune.calibrate import hessians
from sparse_jax.prune.config import PruneConfig
from sparse_jax.prune.rows import Rows
from sparse_jax.solvers import solve_shared
from sparse_jax.sparsity import scores
from sparse_jax.sparsity.masks import to_matrix
from sparse_jax.sparsity.patterns import UnitPattern
from sparse_jax.tree import from_paths, leaf_paths
from sparse_jax.types import InputError, Params

TAPS = {f"layers/{name}/kernel": tap for tap, names in INPUTS.items() for name in names}
"""Path of a matrix -> the tap of the block that it reads."""

STAND_INS = {"sparsegpt_refit": "sparsegpt", "admm": "sparsegpt"}
"""Solvers whose errors are about a constant multiple of a quicker one's."""

_TOKENS = 1024  # that errors at the end of a block are averaged over
_PERTURBATION = 0.3  # of each token: about as large as the errors of pruning


def measure(
    layer_params: Params,
    inputs: Activations,
    patterns: dict[str, UnitPattern],
    priors: dict[str, jax.Array],
    model_config: LlamaConfig,
    config: PruneConfig,
) -> list[Row]:
    """Measures the matrices of one dense block for `allocate`.

    Args:
      layer_params: `params["layers"]` at one layer; not changed.
      inputs: activations of the dense model that enter the block.
      patterns: of the matrices that take part, by path in the whole model, with the
        target as their sparsity.
      priors: masks of this layer by the same paths.
      model_config: architecture.
      config: the solver, and the kind of allocation.

    Returns:
      JSON-able rows, one per matrix: path, units and dead (see `count_units`), and
        "owl": outliers, their number among |w_ij| |x_j|
        "error", "output": sparsities and the errors there; "output": the block's gain
    """
    leaves = leaf_paths({"layers": layer_params})
    leaves |= {path: effective_weight(leaves[path], priors[path]) for path in priors}
    layer_params = from_paths(leaves)["layers"]
    taps = tuple(dict.fromkeys(TAPS[path] for path in patterns))
    shared = hessians(layer_params, inputs, model_config, taps, inputs.samples)
    rows = {
        path: {"path": path} | _count(pattern, leaves[path], priors.get(path))
        for path, pattern in patterns.items()
    }
    if config.allocation.kind == "owl":
        counts = _outliers(leaves, patterns, shared, config.allocation.outlier)
        return [row | {"outliers": counts[path]} for path, row in rows.items()]
    sample = _Sample(layer_params, inputs, model_config)
    for path, row in rows.items():
        arguments = (shared[TAPS[path]], patterns[path], priors.get(path), config)
        solved = _solve(row, leaves[path], *arguments)
        row["sparsities"] = list(solved)
        row["errors"] = [
            sample.error(leaves | {path: kernel}) if error is None else error
            for kernel, error in solved.values()
        ]
    gain = {"gain": sample.gain()} if config.allocation.kind == "output" else {}
    return [row | gain for row in rows.values()]


def _count(pattern, kernel, prior) -> Row:
    prior = None if prior is None else to_matrix(prior)
    return count_units(pattern, to_matrix(kernel).shape, prior)


def _outliers(leaves, paths, shared, multiple) -> dict[str, int]:
    """How many Wanda scores of each matrix are above a multiple of the block's mean."""
    found = {
        path: scores.wanda(to_matrix(leaves[path]), jnp.diagonal(shared[TAPS[path]]))
        for path in paths
    }
    size = sum(score.size for score in found.values())
    mean = sum(float(score.sum()) for score in found.values()) / size
    _check_finite(mean, "scores")
    return {path: int((score > multiple * mean).sum()) for path, score in found.items()}


def _solve(
    row, kernel, hessian, pattern, prior, config
) -> dict[float, tuple[jax.Array, Any]]:
    """Solves a matrix at sparsities between its limits, with one factorisation.

    Returns:
      {sparsity: (kernel, relative error if that is what is allocated by)}
    """
    low, high = config.allocation.limits(row, pattern.sparsity)
    counts = np.linspace(low, high, config.allocation.points).astype(np.int64)
    patterns = {
        f"{row['path']}, {count} pruned": replace(
            pattern, sparsity=exact_sparsity(count, row["units"])
        )
        for count in np.unique(counts).tolist()
    }
    config = replace(config, solver=STAND_INS.get(config.solver, config.solver))
    rows = Rows([kernel.shape[1]], [pattern])
    prior = None if prior is None else rows.take(prior)
    with rows.use():
        solutions = solve_shared(
            config.solver,
            dict.fromkeys(patterns, rows.take(kernel)),
            hessian,
            patterns,
            prior_masks=dict.fromkeys(patterns, prior),
            **config.options,
        )
        measured = config.allocation.kind == "error"
        errors = [s.relative_error if measured else None for s in solutions.values()]
    return {
        patterns[name].sparsity: (rows.give(solution.weights, kernel.sharding), error)
        for (name, solution), error in zip(solutions.items(), errors, strict=True)
    }


class _Sample:
    """A few of a block's inputs and outputs, to compare its variants with."""

    def __init__(self, layer_params, inputs, model_config):
        x_BTD = next(iter(inputs))
        count = min(max(1, _TOKENS // x_BTD.shape[1]), inputs.samples)
        # float32: the errors are smaller than the rounding of narrower types.
        self.x_BTD = _first(x_BTD, count).astype(jnp.float32)
        self.layer_params, self.config = layer_params, model_config
        self.y_BTD = run_block(layer_params, self.x_BTD, model_config)
        _check_finite(float(jnp.abs(self.y_BTD).max()), "outputs")

    def error(self, leaves) -> float:
        """Relative error of the block's outputs with other weights."""
        layer_params = from_paths(leaves)["layers"]
        return float(_output_error(layer_params, self.x_BTD, self.y_BTD, self.config))

    def gain(self) -> float:
        """Relative error of the outputs over that of perturbed inputs."""
        perturbed_BTD = _perturb(self.x_BTD)
        entering = float(_relative_error(perturbed_BTD, self.x_BTD))
        if entering == 0:  # a single token, or all of them the same
            return 1.0
        leaving = _output_error(
            self.layer_params, perturbed_BTD, self.y_BTD, self.config
        )
        return float(leaving) / entering


def _check_finite(value: float, what: str) -> None:
    if not math.isfinite(value):
        raise InputError(
            f"allocation: the block's {what} are NaN or infinite; check its weights "
            "and the calibration text"
        )


def _first(x_BTD, count):
    """The first sequences of a batch; on a mesh all devices have them."""
    mesh = mesh_lib.current()
    if mesh.size > 1:
        whole = NamedSharding(mesh, PartitionSpec())
        x_BTD = jax.jit(lambda x: x, out_shardings=whole)(x_BTD)
    return x_BTD[:count]


@partial(jax.jit, static_argnames="config")
def _output_error(layer_params, x_BTD, y_BTD, config):
    return _relative_error(run_block(layer_params, x_BTD, config), y_BTD)


@jax.jit
def _relative_error(changed_BTD, x_BTD):
    energy_BT = jnp.sum(x_BTD**2, -1)
    error_BT = jnp.sum((changed_BTD - x_BTD) ** 2, -1)
    return jnp.mean(jnp.where(error_BT == 0, 0.0, error_BT / energy_BT))


@jax.jit
def _perturb(x_BTD):
    """Moves every token a little towards another one: errors lie where tokens do."""
    size_BT1 = jnp.linalg.norm(x_BTD, axis=-1, keepdims=True)
    direction_BTD = x_BTD / jnp.maximum(size_BT1, 1e-30)
    shift = (1, x_BTD.shape[1] // 2)
    other_BTD = jnp.roll(direction_BTD, shift, (0, 1))
    return x_BTD + _PERTURBATION * size_BT1 * (other_BTD - direction_BTD)
