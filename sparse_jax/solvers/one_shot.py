"""Solvers that choose a mask and do not move the weights: magnitude and Wanda."""

from dataclasses import replace

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from sparse_jax.solvers.problem import (
    Problem,
    Solution,
    as_partial,
    need_hessian,
    round_columns,
)
from sparse_jax.sparsity import scores
from sparse_jax.sparsity.patterns import Block, Group, Unstructured

Hessian = Float[Array, "*lead in in"]


def magnitude(
    problems: dict[str, Problem], hessian: Hessian | None
) -> dict[str, Solution]:
    """Keeps the largest weights; needs no Hessian.

    Units of Group and Block patterns are ranked by the sum of their squared weights.
    """
    return {
        name: _keep(problem, scores.magnitude(problem.weights), hessian)
        for name, problem in problems.items()
    }


def wanda(
    problems: dict[str, Problem], hessian: Hessian | None, *, per_row: bool = True
) -> dict[str, Solution]:
    """Keeps the largest |w_ij| sqrt(H_jj).

    Reference: Sun et al. 2023, arXiv 2306.11695.

    Args:
      problems: matrices that share an input.
      hessian: H [..., in, in]; only its diagonal is read.
      per_row: rank unstructured weights inside each output row, as published.

    Raises:
      InputError: there is no Hessian.
    """
    hessian = need_hessian("wanda", hessian)
    diagonal = jnp.diagonal(hessian, axis1=-2, axis2=-1)
    solutions = {}
    for name, problem in problems.items():
        if per_row and isinstance(problem.pattern, Unstructured):
            pattern = replace(problem.pattern, per_row=True)
            problem = replace(problem, pattern=pattern)
        *lead, _, n_in = problem.weights.shape
        score = scores.wanda(problem.weights, jnp.broadcast_to(diagonal, (*lead, n_in)))
        solutions[name] = _keep(problem, score, hessian)
    return solutions


def _keep(problem, score, hessian):
    if isinstance(problem.pattern, (Group, Block)):
        score = score**2
    mask = problem.pattern.project(score, problem.prior_mask)
    weights = _zero_pruned(problem.weights, mask)
    if problem.quantizer is not None:
        quantizer = as_partial(problem.quantizer)
        weights = round_columns(weights, mask, quantizer, n_lead=weights.ndim - 2)
    return Solution(weights, mask, problem, hessian)


@jax.jit
def _zero_pruned(weights, mask):
    return jnp.where(mask, weights, jnp.zeros_like(weights))
