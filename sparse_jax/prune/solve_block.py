"""One block pruned and rounded: its Hessians, a solve per input, and report rows."""

import time
from typing import NamedTuple

import jax
from jaxtyping import Array

from sparse_jax.models import INPUTS, LlamaConfig
from sparse_jax.ops import effective_weight
from sparse_jax.prune.activations import Activations
from sparse_jax.prune.calibrate import hessians
from sparse_jax.prune.config import PruneConfig
from sparse_jax.prune.correct import correct
from sparse_jax.prune.matrix_row import Row, matrix_row
from sparse_jax.prune.plan import LayerMasks
from sparse_jax.prune.ranges import input_ranges
from sparse_jax.prune.rows import Rows
from sparse_jax.prune.smooth_block import smooth
from sparse_jax.prune.solve_rounded import Rounded, solve_rounded
from sparse_jax.quant import Grid
from sparse_jax.solvers import solve_shared
from sparse_jax.sparsity import Pattern
from sparse_jax.tree import from_paths, leaf_paths
from sparse_jax.types import Params


class PrunedBlock(NamedTuple):
    """One block after pruning, rounding, or both.

    Attributes:
      params: `params["layers"]` at one layer; a rounded matrix lies on its grid, and is
        zero where it has outliers.
      masks: of every matrix that is pruned in some layer.
      rows: what the report says of every solved matrix, see `prune`.
      grids: by path, of the rounded matrices [in, out].
      adapter: low-rank factors and outliers of this layer, by leaf path.
      input_scales: by path, the static scale of a rounded matrix's inputs.
    """

    params: Params
    masks: LayerMasks
    rows: list[Row]
    grids: dict[str, Grid]
    adapter: dict[str, Array]
    input_scales: dict[str, float]


def solve_block(
    layer_params: Params,
    inputs: Activations,
    patterns: dict[str, Pattern],
    priors: LayerMasks,
    model_config: LlamaConfig,
    config: PruneConfig,
    rounded: list[str] | None = None,
) -> PrunedBlock:
    """Prunes one block, and rounds it where the config says so.

    Args:
      layer_params: `params["layers"]` at one layer; emptied, to free the old weights.
      inputs: activations that enter the block; none for magnitude without text.
      patterns: of the matrices to prune, by path in the whole model.
      priors: masks of this layer by the same paths; of matrices that are not pruned
        now, too.
      model_config: architecture.
      config: solver and options.
      rounded: paths of the matrices to round.
    """
    # Where some are rounded, the report has a row of the others, too.
    every = config.quantize is not None
    groups = {
        tap: [
            path
            for path in (f"layers/{name}/kernel" for name in names)
            if every or path in patterns
        ]
        for tap, names in INPUTS.items()
    }
    groups = {tap: paths for tap, paths in groups.items() if paths}
    shared, ranges = {}, {}
    if len(inputs) and groups:
        arguments = layer_params, inputs, model_config, tuple(groups), inputs.samples
        shared = hessians(*arguments)
        if config.quantize is not None and config.quantize.smooth is not None:
            ranges = input_ranges(*arguments)
        jax.block_until_ready(shared)  # the solves are timed
    leaves = leaf_paths({"layers": layer_params})
    layer_params.clear()
    for path in priors:
        leaves[path] = effective_weight(leaves[path], priors[path])
    block = PrunedBlock({}, dict(priors), [], {}, {}, {})
    if config.quantize is not None and config.quantize.smooth is not None:
        arguments = leaves, priors, shared, ranges, rounded or [], config.quantize
        leaves, shared, ranges = smooth(*arguments)
    for tap, paths in groups.items():
        kernels = {path: leaves.pop(path) for path in paths}
        arguments = (kernels, shared.pop(tap, None), patterns, priors)
        solved = _solve_tap(*arguments, rounded or [], config)
        leaves |= solved.params
        block.rows.extend(solved.rows)
        for name in ("masks", "grids", "adapter"):
            getattr(block, name).update(getattr(solved, name))
    return block._replace(params=from_paths(leaves)["layers"])


def _solve_tap(kernels, hessian, patterns, priors, rounded, config) -> PrunedBlock:
    """Solves matrices that read the same inputs; all dicts are by path."""
    paths = list(kernels)
    places = {path: kernel.sharding for path, kernel in kernels.items()}
    n_outs = [kernel.shape[1] for kernel in kernels.values()]
    rows = Rows(n_outs, [patterns.get(path) for path in paths])
    found = {path: rows.take(priors[path]) for path in paths if path in priors}
    matrices = {path: rows.take(kernels.pop(path)) for path in paths}
    started = time.perf_counter()
    with rows.use():
        arguments = (matrices, hessian, patterns, found)
        if config.quantize is None:
            solved = _solve_floats(*arguments, config)
        else:
            solved = solve_rounded(*arguments, rounded, config)
        jax.block_until_ready([result.solution.weights for result in solved.values()])
    seconds = (time.perf_counter() - started) / len(paths)
    block = PrunedBlock({}, {}, [], {}, {}, {})
    for path in paths:
        result = solved.pop(path)  # and with it the old weights
        weights, leaves = result.solution.weights, {}
        with rows.use():
            if config.quantize is not None:
                result, weights, leaves = correct(result, hessian, config.quantize)
            pruned = patterns.get(path), found.get(path)
            row = matrix_row(path, result, *pruned, config)
        block.rows.append(row | {"seconds": seconds})
        block.params[path] = rows.give(weights, places[path])
        if path in patterns:
            block.masks[path] = rows.give(result.solution.mask, places[path])
        if result.grid is not None:
            block.grids[path] = jax.tree.map(rows.give_whole, result.grid)
        node = path.rpartition("/")[0]
        for name, leaf in leaves.items():
            block.adapter[f"{node}/{name}"] = rows.replicate(leaf)
    return block


def _solve_floats(matrices, hessian, patterns, priors, config) -> dict[str, Rounded]:
    solutions = solve_shared(
        config.solver,
        {path: matrices.pop(path) for path in list(matrices)},
        hessian,
        patterns,
        prior_masks=priors,
        **config.options,
    )
    return {path: Rounded(solution) for path, solution in solutions.items()}
