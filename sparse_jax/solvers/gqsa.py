"""GQSA's choice of groups: those whose loss the inverse Hessian says to be least.

A group g of consecutive inputs of a row is scored as a whole,

    s_g = mean over j in g of   w_j^2 / [H^-1]_jj       (or w_j^2 / [H^-1]_jj^2)

which is what removing each of its weights alone would cost, the others making up for
it; the lowest groups go. What is kept can then make up for what went, by SparseGPT's
column rule on that mask, and for its own rounding.

SparseGPT ranks groups by what removing a group costs after everything on its left,
within blocks of columns; here all groups of a row compete at once, or of a matrix.

Reference: GQSA, arXiv 2412.17560, of which neither the full text nor the code could be
had when this was written: the denominator, as in Optimal Brain Surgeon, or its square,
and whether the groups of a row or of a matrix compete, are options. The defaults are
what lost least on a small Llama at group:16@0.5.
"""

from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from sparse_jax.solvers.hessian import factorize
from sparse_jax.solvers.problem import (
    Problem,
    Solution,
    as_partial,
    check_scale,
    need_hessian,
    round_columns,
)
from sparse_jax.solvers.sparsegpt import sparsegpt
from sparse_jax.sparsity.patterns import Group, Unstructured

_BLOCK = 32  # of the factor, whose diagonal blocks are not read here


def gqsa(
    problems: dict[str, Problem],
    hessian: Float[Array, "*lead in in"] | None,
    *,
    squared_denominator: bool = False,
    per_row: bool = True,
    compensate: bool = True,
    block_size: int | None = None,
    damping: float = 0.01,
) -> dict[str, Solution]:
    """Prunes the groups of the lowest mean saliency, for any pattern.

    Args:
      problems: matrices that share an input; each is ranked on its own.
      hessian: undamped H.
      squared_denominator: score by w^2 / [H^-1]_jj^2.
      per_row: every row prunes as many groups, or single weights, as the others.
      compensate: the kept weights make up for the pruned ones and for their rounding;
        otherwise they stay, or are rounded to nearest.
      block_size: see `sparsegpt`, as damping.
      damping: added to H's diagonal, relative to the diagonal's mean.

    Raises:
      InputError: there is no Hessian, it is not positive definite with any damping up
        to 1e6, or an option is not valid.

    Example:
      >>> from sparse_jax.solvers import solve
      >>> from sparse_jax.sparsity import Group
      >>> W, H = jnp.array([[1.0, 1.0, 2.0, 0.1]]), jnp.diag(jnp.array([9.0, 9, 1, 1]))
      >>> solve("gqsa", W, H, Group(2, 0.5)).mask.tolist()
      [[True, True, False, False]]
    """
    hessian = need_hessian("gqsa", hessian)
    check_scale("damping", damping)
    factor = factorize(hessian, damping, _BLOCK, ", ".join(problems))
    diagonal = _inverse_diagonal(factor[:3], n_in=hessian.shape[-1])
    diagonal = diagonal.reshape(hessian.shape[:-1])
    masked = {
        name: _choose(problem, diagonal, squared_denominator, per_row)
        for name, problem in problems.items()
    }
    if not compensate:
        return {n: _keep(problems[n], m, hessian, factor) for n, m in masked.items()}
    # All that is to go has gone: the column rule chooses nothing any more.
    fixed = {n: replace(problems[n], prior_mask=mask) for n, mask in masked.items()}
    options: dict[str, Any] = {"block_size": block_size, "damping": damping}
    found = sparsegpt(fixed, hessian, **options)
    return {n: replace(s, problem=problems[n]) for n, s in found.items()}


def _choose(problem, diagonal, squared, per_row):
    pattern = problem.pattern
    if per_row and isinstance(pattern, (Unstructured, Group)):
        pattern = replace(pattern, per_row=True)
    *lead, _, n_in = problem.weights.shape
    diagonal = jnp.broadcast_to(diagonal, (*lead, n_in))
    score = _saliency(problem.weights, diagonal, squared)
    return pattern.project(score, problem.prior_mask)


@jax.jit
def _saliency(weights, diagonal, squared):
    squares = jnp.square(weights.astype(jnp.float32))
    return squares / jnp.where(squared, diagonal**2, diagonal)[..., None, :]


def _keep(problem, mask, hessian, factor):
    weights = jnp.where(mask, problem.weights, 0).astype(problem.weights.dtype)
    if problem.quantizer is not None:
        quantizer = as_partial(problem.quantizer)
        weights = round_columns(weights, mask, quantizer, n_lead=weights.ndim - 2)
    lead = weights.shape[:-2]
    damping_M = np.broadcast_to(factor.damping, int(np.prod(lead)))
    return Solution(weights, mask, problem, hessian, damping_M.reshape(lead))


@partial(jax.jit, static_argnames="n_in")
def _inverse_diagonal(factor, n_in: int) -> Float[Array, "M in"]:
    """diag(H^-1) of each H = R R^T; infinite for inputs that are always zero."""

    def one(problem):
        rt_PP, dead_P = problem
        # The rows of U^T = (R^T)^-1, as H^-1 = U^T U.
        ut_PP = lax.linalg.triangular_solve(
            rt_PP, jnp.eye(len(rt_PP)), left_side=True, lower=True
        )
        return jnp.where(dead_P, jnp.inf, jnp.sum(ut_PP**2, axis=1))

    rt, _, dead = factor
    return lax.map(one, (rt, dead))[:, :n_in]
