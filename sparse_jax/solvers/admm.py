"""Pruning by the alternating direction method of multipliers (ADMM).

Reference: Meng et al. 2024, "ALPS: Improved Optimization for Highly Sparse One-Shot
Pruning for Large Language Models", arXiv 2406.07831. Weights and Hessian are scaled so
that every input counts alike; then the weights B and their pruned copy D are pulled
together:

    W <- W S, H <- S^-1 H S^-1       with S = sqrt(diag H), so that H_jj = 1
    minimise tr((B - W) H (B - W)^T) with B = D, D in the pattern

    B <- (W H - V + rho D) (H + rho)^-1    the least squares, pulled towards D
    B <- alpha B + (1 - alpha) D           over-relaxation
    D <- the pattern's projection of A = B + V / rho
    V <- V + rho (B - D) = rho (A - D)

D is A on the support and V is rho A off it, so A and the mask are all that an iteration
hands to the next. rho grows from 0.1, where the support still changes freely, to 1, the
scale of H, where it has settled. It grows in every second iteration, whatever the
support does: that takes fewer of them than the paper's rule, and the same number for
every matrix, and a new `inverse` costs less than the two products it is for. At last
`refit` finds the best weights on the support.
"""

import logging
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from sparse_jax.solvers.inverse import inverse
from sparse_jax.solvers.problem import (
    Problem,
    Solution,
    check_count,
    check_scale,
    need_hessian,
)
from sparse_jax.solvers.refit import refit
from sparse_jax.sparsity.patterns import NM, as_prior
from sparse_jax.sparsity.units import project_nm, project_units
from sparse_jax.types import InputError

_LOG = logging.getLogger(__name__)
_HIGHEST = lax.Precision.HIGHEST
_FIRST_RHO, _LAST_RHO = 0.1, 1.0
_ALPHA = 1.3
_HOLD = 2  # iterations with the same rho
_LARGEST_DAMPING = 1e6


def admm(
    problems: dict[str, Problem],
    hessian: Float[Array, "*lead in in"] | None,
    *,
    iterations: int = 24,
    damping: float = 0.0,
) -> dict[str, Solution]:
    """Searches for the support and the weights together: the best masks, the most work.

    Matrices that share an input share the inverses. The more the inputs are correlated,
    the more there is to gain over `sparsegpt_refit`; where they are not at all, masks
    of both are equally good, within a percent of the error.

    Args:
      problems: the matrices; each is ranked on its own.
      hessian: undamped H.
      iterations: of the search, rounded up to an even number. Two cost two products of
        the weights with H and, for all matrices together, one inverse; more of them
        find a slightly better support.
      damping: added to H's diagonal during the search, relative to the diagonal's mean.
        Even a singular H needs none, for rho is added as well.

    Raises:
      InputError: there is no Hessian, it is not positive definite with any damping up
        to 1e6, or an option is not valid.
    """
    hessian = need_hessian("admm", hessian)
    check_count("iterations", iterations)
    check_scale("damping", damping)
    n_in = hessian.shape[-1]
    hessian_GII = hessian.reshape(-1, n_in, n_in)
    kinds = tuple(_kind(problem) for problem in problems.values())
    matrices = [_matrices(p, len(hessian_GII)) for p in problems.values()]
    n_rho = -(-iterations // _HOLD)
    rho_R = np.geomspace(_FIRST_RHO, _LAST_RHO, n_rho, dtype=np.float32)
    damping_G = np.full(len(hessian_GII), damping, np.float32)
    while True:
        found, finite_G = _search(hessian_GII, damping_G, matrices, rho_R, kinds)
        failed_G = ~np.asarray(finite_G)
        if not failed_G.any():
            break
        damping_G = _raise_damping(damping_G, failed_G, ", ".join(problems))
    solutions = {}
    for (name, problem), (weights, mask) in zip(problems.items(), found, strict=True):
        shape = problem.weights.shape
        each = int(np.prod(shape[:-2])) // len(damping_G)
        solutions[name] = Solution(
            weights.reshape(shape).astype(problem.weights.dtype),
            mask.reshape(shape),
            problem,
            hessian,
            np.repeat(damping_G, each).reshape(shape[:-2]),
        )
    return refit(solutions, damping)


def _raise_damping(damping_G, failed_G, name):
    if damping_G[failed_G].max() >= _LARGEST_DAMPING:
        raise InputError(
            f"{name}: the Hessian is not positive definite even with damping "
            f"{damping_G[failed_G].max():g}; check the calibration activations"
        )
    # The first rho is added in any case, so that a smaller step would change nothing.
    raised_G = np.where(failed_G, np.maximum(damping_G * 10, 0.01), damping_G)
    _LOG.warning(
        "%s: the Hessian is not positive definite, damping raised to %g",
        name,
        raised_G[failed_G].max(),
    )
    return raised_G


def _kind(problem):
    """The static part of a pattern: extent of a unit, and m of N:M (0 for units)."""
    pattern = problem.pattern
    return ((1, 1), pattern.m) if isinstance(pattern, NM) else (pattern.unit, 0)


def _matrices(problem, n_groups):
    """(W, prior, counts), each [G, matrices that share a Hessian, ...]."""
    weights, pattern = problem.weights, problem.pattern
    prior = as_prior(problem.prior_mask, weights)
    if isinstance(pattern, NM):
        counts = np.full(int(np.prod(weights.shape[:-2])), pattern.n, np.int32)
    else:
        counts = pattern.counts(weights.shape, problem.prior_mask)
    return tuple(
        array.reshape(n_groups, -1, *array.shape[array.ndim - n_kept :])
        for array, n_kept in ((weights, 2), (prior, 2), (counts, counts.ndim - 1))
    )


@partial(jax.jit, static_argnames="kinds")
def _search(hessian_GII, damping_G, matrices, rho_R, kinds):
    """Returns (weights, mask) [G, M, out, in] of every problem, and what is finite [G].

    Every group of matrices has its own Hessian.
    """

    def search_group(group):
        hessian_II, damping, matrices = group
        scaled_II, root_I = _scale(hessian_II, damping)
        targets, states = [], []
        for (w_MOI, prior_MOI, counts), kind in zip(matrices, kinds, strict=True):
            # Weights of dead inputs count as zeros here, and so stay zeros.
            target = w_MOI.astype(jnp.float32) * root_I
            mask = lax.map(partial(_project, kind), (target, prior_MOI, counts))
            targets.append(target)
            states.append((target, mask))

        def raise_rho(carry, rho):
            inverse_II = inverse(scaled_II + rho * jnp.eye(len(scaled_II)))

            def iterate(_, carry):
                states, last_rho = carry
                states = [
                    lax.map(
                        partial(_step, inverse_II, rho, last_rho, kind),
                        (target, *state, prior, counts),
                    )
                    for target, state, (_, prior, counts), kind in zip(
                        targets, states, matrices, kinds, strict=True
                    )
                ]
                return states, rho

            return lax.fori_loop(0, _HOLD, iterate, carry), None

        # With a last rho of zero V is zero, whatever is off the support.
        carry = (states, jnp.zeros_like(rho_R[0]))
        (states, _), _ = lax.scan(raise_rho, carry, rho_R)
        finite = jnp.all(jnp.stack([jnp.isfinite(a).all() for a, _ in states]))
        root_I = jnp.where(root_I > 0, root_I, 1)
        found = [(jnp.where(mask, a, 0) / root_I, mask) for a, mask in states]
        return found, finite

    return lax.map(search_group, (hessian_GII, damping_G, matrices))


def _scale(hessian_II, damping):
    """S^-1 H S^-1 of the damped H, and S; both are zero for dead inputs."""
    diagonal_I = jnp.diagonal(hessian_II)
    live_I = diagonal_I > 0
    mean = jnp.sum(diagonal_I) / jnp.maximum(jnp.sum(live_I), 1)
    root_I = jnp.where(live_I, jnp.sqrt(diagonal_I + damping * mean), 0)
    inverse_I = jnp.where(live_I, 1 / root_I, 0)
    scaled_II = hessian_II * inverse_I * inverse_I[:, None]
    ones_I = live_I.astype(jnp.float32)
    return jnp.fill_diagonal(scaled_II, ones_I, inplace=False), root_I


def _step(inverse_II, rho, last_rho, kind, problem):
    """One iteration for one matrix; (A, mask) stand for D and V."""
    w_OI, a_OI, mask_OI, prior_OI, counts = problem
    # B = W + (rho (D - W) - V) (H + rho)^-1, which needs no W H.
    pull_OI = jnp.where(mask_OI, rho, -last_rho) * a_OI - rho * w_OI
    b_OI = w_OI + jnp.matmul(pull_OI, inverse_II, precision=_HIGHEST)
    before_OI = jnp.where(mask_OI, 1 - _ALPHA, last_rho / rho) * a_OI
    a_OI = _ALPHA * b_OI + before_OI
    return a_OI, _project(kind, (a_OI, prior_OI, counts))


def _project(kind, problem):
    """Keeps the units with the most energy."""
    values_OI, prior_OI, counts = problem
    unit, m = kind
    energy_OI = values_OI**2
    if m:
        return project_nm(energy_OI, prior_OI, counts, m)
    return project_units(energy_OI[None], prior_OI[None], counts[None], unit)[0]
