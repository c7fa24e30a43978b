"""One block pruned: its Hessians, a solve per input, and a row of the report each."""

import time
from typing import Any, NamedTuple

import jax

from sparse_jax.models import INPUTS, LlamaConfig
from sparse_jax.ops import effective_weight
from sparse_jax.prune.activations import Activations
from sparse_jax.prune.calibrate import hessians
from sparse_jax.prune.config import PruneConfig
from sparse_jax.prune.plan import LayerMasks
from sparse_jax.prune.rows import Rows
from sparse_jax.solvers import Solution, solve_shared
from sparse_jax.sparsity import Pattern
from sparse_jax.sparsity.masks import count_per_matrix
from sparse_jax.tree import from_paths, leaf_paths
from sparse_jax.types import Params

Row = dict[str, Any]


class PrunedBlock(NamedTuple):
    """One block after pruning.

    Attributes:
      params: `params["layers"]` at one layer.
      masks: of every matrix that is pruned in some layer.
      rows: what the report says of every solved matrix, see `prune`.
    """

    params: Params
    masks: LayerMasks
    rows: list[Row]


def solve_block(
    layer_params: Params,
    inputs: Activations,
    patterns: dict[str, Pattern],
    priors: LayerMasks,
    model_config: LlamaConfig,
    config: PruneConfig,
) -> PrunedBlock:
    """Prunes one block.

    Args:
      layer_params: `params["layers"]` at one layer; emptied, to free the old weights.
      inputs: activations that enter the block; none for magnitude without text.
      patterns: of the matrices to prune, by path in the whole model.
      priors: masks of this layer by the same paths; of matrices that are not pruned
        now, too.
      model_config: architecture.
      config: solver and options.
    """
    groups = {
        tap: [path for name in names if (path := f"layers/{name}/kernel") in patterns]
        for tap, names in INPUTS.items()
    }
    groups = {tap: paths for tap, paths in groups.items() if paths}
    shared = {}
    if len(inputs) and groups:
        taps = tuple(groups)
        shared = hessians(layer_params, inputs, model_config, taps, inputs.samples)
        jax.block_until_ready(shared)  # the solves are timed
    leaves = leaf_paths({"layers": layer_params})
    layer_params.clear()
    for path in priors:
        leaves[path] = effective_weight(leaves[path], priors[path])
    masks, rows = dict(priors), []
    for tap, paths in groups.items():
        kernels = {path: leaves.pop(path) for path in paths}
        solved = _solve_tap(kernels, shared.pop(tap, None), patterns, priors, config)
        leaves |= solved.params
        masks |= solved.masks
        rows += solved.rows
    return PrunedBlock(from_paths(leaves)["layers"], masks, rows)


def _solve_tap(kernels, hessian, patterns, priors, config) -> PrunedBlock:
    """Solves matrices that read the same inputs; all dicts are by path."""
    paths = list(kernels)
    places = {path: kernel.sharding for path, kernel in kernels.items()}
    n_outs = [kernel.shape[1] for kernel in kernels.values()]
    rows = Rows(n_outs, [patterns[path] for path in paths])
    prior_matrices = {p: rows.take(priors[p]) for p in paths if p in priors}
    matrices = {path: rows.take(kernels.pop(path)) for path in paths}
    started = time.perf_counter()
    with rows.use():
        solutions = solve_shared(
            config.solver,
            {path: matrices.pop(path) for path in paths},
            hessian,
            patterns,
            prior_masks=prior_matrices,
            **config.options,
        )
        jax.block_until_ready([solution.weights for solution in solutions.values()])
    seconds = (time.perf_counter() - started) / len(paths)
    solved = PrunedBlock({}, {}, [])
    for path in paths:
        solution = solutions.pop(path)  # and with it the old weights
        with rows.use():
            solved.rows.append(_row(path, solution, seconds))
        solved.params[path] = rows.give(solution.weights, places[path])
        solved.masks[path] = rows.give(solution.mask, places[path])
    return solved


def _row(path: str, solution: Solution, seconds: float) -> Row:
    calibrated = solution.hessian is not None
    size = solution.mask.size
    return {
        "path": path,
        "pattern": str(solution.problem.pattern),
        "sparsity": (size - int(count_per_matrix(solution.mask))) / size,
        "relative_error": solution.relative_error if calibrated else None,
        "damping": None if solution.damping is None else float(solution.damping),
        "seconds": seconds,
    }
