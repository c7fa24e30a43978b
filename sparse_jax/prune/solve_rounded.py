"""Matrices that read the same inputs, pruned and rounded in one solve.

Every matrix is solved in floats first. What is left of it says where its grid lies, and
then:

    gptq      SparseGPT: solved again from the start with the quantizer, so that a
              column is pruned and rounded at once and the columns on its right make up
              for both. Other solvers have chosen their mask, and those that find the
              best weights on it, those, too: the same rule rounds them on the mask.
    nearest   what the first solve has left is rounded as it is.
"""

import math
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from sparse_jax import quant
from sparse_jax.prune.config import PruneConfig
from sparse_jax.prune.quantize_config import QuantizeConfig
from sparse_jax.quant import Grid
from sparse_jax.solvers import Solution, solve_shared
from sparse_jax.solvers.inverse import inverse
from sparse_jax.sparsity import NM, Pattern

Matrix = Float[Array, "out in"]
Mask = Bool[Array, "out in"]

_MOVING = ("sparsegpt_refit", "admm")
"""Solvers whose weights are the best ones on their mask."""


class Rounded(NamedTuple):
    """A matrix after its solve.

    Attributes:
      solution: pruned and rounded; outliers in their places.
      grid: of its codes; None where it stays in floats.
      outliers: weights that are not rounded, or None.
      left_out: why a matrix that was to be rounded is not.
    """

    solution: Solution
    grid: Grid | None = None
    outliers: Mask | None = None
    left_out: str | None = None


def solve_rounded(
    matrices: dict[str, Matrix],
    hessian: Float[Array, "in in"] | None,
    patterns: dict[str, Pattern],
    priors: dict[str, Mask],
    rounded: list[str],
    config: PruneConfig,
) -> dict[str, Rounded]:
    """Prunes and rounds matrices; all dicts are by path.

    Args:
      matrices: the weights.
      hessian: of the inputs that they share; None where nothing needs it.
      patterns: of those that are pruned.
      priors: what is pruned already.
      rounded: those that are rounded.
      config: with `quantize`.
    """
    quantize = config.quantize
    assert quantize is not None
    floats = _solve_floats(matrices, hessian, patterns, priors, config)
    rounded = [path for path in matrices if path in rounded]
    solved = {
        path: Rounded(floats[path], left_out=None if path in rounded else "by rule")
        for path in matrices
    }
    grids, outliers = _fit(floats, hessian, rounded, config)
    quantizers = {
        path: quant.quantizer_with_outliers(grids[path], outliers[path])
        if path in outliers
        else quant.quantizer(grids[path])
        for path in rounded
    }
    solutions = _round(floats, hessian, patterns, quantizers, config)
    for path, solution in solutions.items():
        if (reason := _too_far(quantize, floats[path], solution)) is not None:
            solved[path] = Rounded(floats[path], left_out=reason)
            continue
        solved[path] = Rounded(solution, grids[path], outliers.get(path))
    return solved


def _solve_floats(matrices, hessian, patterns, priors, config) -> dict[str, Solution]:
    """The matrices pruned, or, without a pattern, as they are."""
    pruned = [path for path in matrices if path in patterns]
    solutions = {}
    if pruned:
        solutions = solve_shared(
            config.solver,
            {path: matrices[path] for path in pruned},
            hessian,
            {path: patterns[path] for path in pruned},
            prior_masks={path: priors.get(path) for path in pruned},
            **config.options,
        )
    kept = [path for path in matrices if path not in patterns]
    if kept:
        # Checks them and their Hessian as well, and moves nothing.
        solutions |= solve_shared(
            "magnitude",
            {path: matrices[path] for path in kept},
            hessian,
            {path: _keep_all(matrices[path]) for path in kept},
            prior_masks={path: priors.get(path) for path in kept},
        )
    return solutions


def _keep_all(matrix: Matrix) -> NM:
    """m of m: prunes nothing but what a prior mask prunes already."""
    m = math.gcd(matrix.shape[1], 8)
    return NM(m, m)


def _fit(floats, hessian, rounded, config) -> tuple[dict[str, Grid], dict[str, Mask]]:
    """Outliers, and grids for the rest of what the first solve has left."""
    quantize, outliers, grids = config.quantize, {}, {}
    importance = None if hessian is None else jnp.diagonal(hessian)
    inverse_I = None
    if quantize.outliers is not None and quantize.outliers.by == "hessian":
        inverse_I = _inverse_diagonal(hessian, config.damping or 0.01)
    for path in rounded:
        weights, mask = floats[path].weights, floats[path].mask
        if quantize.outliers is not None:
            count = quantize.outliers.count(*weights.shape)
            outliers[path] = quant.choose_outliers(weights, count, inverse_I)
            mask = mask & ~outliers[path]
        if quantize.clip == "search":
            grids[path] = quant.search(weights, quantize.grid, mask, importance)
        else:
            grids[path] = _fit_range(weights, quantize.grid, mask)
    return grids, outliers


_fit_range = jax.jit(quant.fit, static_argnames=("config", "axis"))


@partial(jax.jit, static_argnames="damping")
def _inverse_diagonal(hessian, damping):
    """[H^-1]_jj of the damped H; of inputs that are always zero, too."""
    mean = jnp.mean(jnp.diagonal(hessian))
    ridge = jnp.where(mean > 0, damping * mean, 1.0)
    return jnp.diagonal(inverse(hessian + ridge * jnp.eye(len(hessian))))


def _round(floats, hessian, patterns, quantizers, config) -> dict[str, Solution]:
    """The solutions with what they keep rounded; their problems stay the same."""
    if not quantizers:
        return {}
    nearest = config.quantize.method == "nearest"
    together = {} if nearest or config.solver != "sparsegpt" else patterns
    starts = {}
    for path in quantizers:
        problem = floats[path].problem
        moved = nearest or (path in patterns and config.solver in _MOVING)
        starts[path] = floats[path].weights if moved else problem.weights
    priors = {
        path: floats[path].problem.prior_mask if path in together else floats[path].mask
        for path in quantizers
    }
    solver = "magnitude" if nearest else "sparsegpt"
    solutions = solve_shared(
        solver,
        starts,
        hessian,
        {path: together.get(path, _keep_all(starts[path])) for path in quantizers},
        prior_masks=priors,
        quantizers=quantizers,
        **config.options_of(solver),
    )
    return {
        path: replace(solution, problem=floats[path].problem)
        for path, solution in solutions.items()
    }


def _too_far(quantize: QuantizeConfig, before: Solution, after: Solution) -> str | None:
    """Why a matrix stays in floats."""
    if quantize.max_error is None:
        return None
    added = float(after.relative_error) - float(before.relative_error)
    if added <= quantize.max_error:
        return None
    return f"rounding adds {added:.3g} to its error, more than {quantize.max_error:g}"
