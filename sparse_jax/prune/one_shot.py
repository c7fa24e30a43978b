"""One-shot pruning of a whole model: calibrate, solve and propagate block by block."""

import re
import time
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Int

from sparse_jax.models import Compute, LlamaConfig
from sparse_jax.ops import effective_weight
from sparse_jax.prune.blockwise import (
    Inputs,
    Progress,
    check_tokens,
    stack_layers,
    take_layer,
    walk,
)
from sparse_jax.prune.calibrate import INPUTS, hessians
from sparse_jax.prune.config import LINEARS, PruneConfig
from sparse_jax.solvers import Solution, solve_shared
from sparse_jax.sparsity import Pattern, sparsity_rows
from sparse_jax.sparsity.masks import check_rule, to_kernel, to_matrix
from sparse_jax.sparsity.patterns import UnitPattern
from sparse_jax.tree import from_paths, leaf_paths, match_rules
from sparse_jax.types import InputError, Masks, Params

Row = dict[str, Any]


def prune(
    params: Params,
    masks: Masks | None,
    tokens: Int[Array | np.ndarray, "samples length"] | None,
    model_config: LlamaConfig,
    config: PruneConfig,
    compute: Compute = Compute(),
    progress: Progress | None = None,
) -> tuple[Params, Masks, list[Row]]:
    """Prunes the linears of every decoder block with one solver.

    Each block is calibrated before it is pruned, and its pruned outputs are what the
    next block is calibrated on. Every shape compiles once, for all layers and all
    sparsities.

    Args:
      params: the model.
      masks: masks that it has already, or None. With `config.nested` what they prune
        stays pruned, also where a rule now says dense; otherwise they are forgotten.
      tokens: calibration sequences; None only for magnitude, which then reports no
        relative error.
      model_config: architecture.
      config: what to do.
      compute: the activations' dtype.
      progress: called after every block as (done, total).

    Returns:
      (params, masks, rows). Rows hold path, layer, pattern, sparsity, relative_error,
      damping (None where unused) and seconds (of the shared solve, split evenly).

    Raises:
      InputError: before any work starts, for a rule, pattern, sparsity or tokens that
        do not fit the model; or for activations that are not finite.
    """
    patterns = plan(params, masks, config)
    if tokens is not None:
        check_tokens(tokens, model_config)
    elif config.solver != "magnitude":
        raise InputError(f"solver {config.solver!r} needs calibration tokens")
    priors = _priors(masks, config)
    binding = {p: m for p, m in priors.items() if p in patterns and m is not None}
    layer_masks: list[dict[str, jax.Array]] = []
    rows: list[Row] = []

    def prune_block(index: int, layer_params: Params, inputs: Inputs) -> Params:
        layer_priors = take_layer(binding, index)
        layer_params, masks_of_layer, rows_of_layer = solve_block(
            layer_params, inputs, patterns, layer_priors, model_config, config
        )
        layer_masks.append(masks_of_layer)
        rows.extend({"layer": index} | row for row in rows_of_layer)
        return layer_params

    options = {"batch_size": config.batch_size, "progress": progress}
    pruned = walk(params, tokens, model_config, compute, prune_block, **options)
    leaves = dict.fromkeys(leaf_paths(params)) | priors | stack_layers(layer_masks)
    new_masks = from_paths(leaves)
    kept_priors = {path: priors[path] for path in priors if path not in patterns}
    _add_sparsity(rows, new_masks)
    return _apply_leaves(pruned, kept_priors), new_masks, rows


def plan(
    params: Params, masks: Masks | None, config: PruneConfig
) -> dict[str, Pattern]:
    """Resolves the rules to a pattern per stacked kernel, and checks all of them.

    Raises:
      InputError: a leaf is uncovered, a rule prunes what is not a linear of a block, a
        pattern does not divide its matrix, or it prunes less than `masks` do.
    """
    leaves = leaf_paths(params)
    priors = _priors(masks, config)
    patterns = {}
    for path, pattern in leaf_paths(
        match_rules(config.pattern_rules(), params)
    ).items():
        if pattern is None:
            continue
        if not re.fullmatch(LINEARS, path):
            raise InputError(
                f"prune.rules: {path} gets pattern {pattern}, but only the linears of "
                "decoder blocks can be pruned; make its rule 'dense'"
            )
        check_rule(pattern, leaves[path].shape, path)
        prior = priors.get(path)
        if prior is not None and isinstance(pattern, UnitPattern):
            prior_LOI = to_matrix(prior)
            try:
                pattern.counts(prior_LOI.shape, prior_LOI)
            except InputError as error:
                raise InputError(f"{path}: {error}") from None
        patterns[path] = pattern
    return patterns


def _priors(masks: Masks | None, config: PruneConfig) -> dict[str, Any]:
    """Masks by path that the new ones must stay inside; None at dense leaves."""
    return leaf_paths(masks) if masks is not None and config.nested else {}


def solve_block(
    layer_params: Params,
    inputs: Inputs,
    patterns: dict[str, Pattern],
    priors: dict[str, jax.Array],
    model_config: LlamaConfig,
    config: PruneConfig,
) -> tuple[Params, dict[str, jax.Array], list[Row]]:
    """Prunes one block.

    Args:
      layer_params: `params["layers"]` at one layer.
      inputs: activations that enter the block; empty for magnitude without text.
      patterns: by path in the whole model, "layers/attention/q/kernel".
      priors: masks [in, out] of this layer, by the same paths.
      model_config: architecture.
      config: solver and options.

    Returns:
      (layer params, masks [in, out] by path, rows).
    """
    kernels = {
        f"layers/{path}": leaf for path, leaf in leaf_paths(layer_params).items()
    }
    groups = {
        tap: [path for name in names if (path := f"layers/{name}/kernel") in patterns]
        for tap, names in INPUTS.items()
    }
    groups = {tap: paths for tap, paths in groups.items() if paths}
    shared = {}
    if inputs and groups:
        shared = hessians(layer_params, inputs, model_config, tuple(groups))
    matrices = _to_matrices({path: kernels[path] for path in patterns})
    matrix_priors = _to_matrices(priors)
    solutions: dict[str, Solution] = {}
    rows = []
    for tap, paths in groups.items():
        started = time.perf_counter()
        shared_solutions = solve_shared(
            config.solver,
            {path: matrices[path] for path in paths},
            shared.get(tap),
            patterns,
            prior_masks=matrix_priors,
            **config.options,
        )
        jax.block_until_ready([s.weights for s in shared_solutions.values()])
        seconds = (time.perf_counter() - started) / len(paths)
        rows += [_row(path, s, seconds) for path, s in shared_solutions.items()]
        solutions |= shared_solutions
    kernels |= _to_kernels({path: s.weights for path, s in solutions.items()})
    masks = _to_kernels({path: s.mask for path, s in solutions.items()})
    return from_paths(kernels)["layers"], masks, rows


def _row(path: str, solution: Solution, seconds: float) -> Row:
    calibrated = solution.hessian is not None
    return {
        "path": path,
        "pattern": str(solution.problem.pattern),
        "relative_error": solution.relative_error if calibrated else None,
        "damping": None if solution.damping is None else float(solution.damping),
        "seconds": seconds,
    }


def _add_sparsity(rows: list[Row], masks: Masks) -> None:
    counted = {(row["path"], row["layer"]): row for row in sparsity_rows(masks)}
    for row in rows:
        row["sparsity"] = counted[row["path"], row["layer"]]["sparsity"]


def _apply_leaves(params: Params, masks: dict[str, jax.Array | None]) -> Params:
    """Zeroes what these masks prune; a leaf without a mask is left alone."""
    leaves = leaf_paths(params)
    for path, mask in masks.items():
        leaves[path] = effective_weight(leaves[path], mask)
    return from_paths(leaves)


# All matrices of a block at once: one small compilation instead of one per shape.
@jax.jit
def _to_matrices(kernels):
    return {path: to_matrix(kernel) for path, kernel in kernels.items()}


@jax.jit
def _to_kernels(matrices):
    return {path: to_kernel(matrix) for path, matrix in matrices.items()}
