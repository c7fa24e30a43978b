"""Solvers as their papers write them, in float64 numpy: slow, clear, the test oracles.

`sparsegpt` keeps every column up to date ("right-looking") and takes U from the
explicit inverse of H, so it shares neither formulation nor code with the fast one.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike

from sparse_jax.sparsity.patterns import NM, Pattern


def sparsegpt(
    W: np.ndarray,
    H: np.ndarray,
    pattern: Pattern,
    *,
    prior_mask: np.ndarray | None = None,
    quantizer: Callable[[np.ndarray, int], np.ndarray] | None = None,
    reference: bool = False,
    block_size: int = 128,
    damping: float = 0.01,
) -> tuple[np.ndarray, np.ndarray]:
    """Prunes one matrix; see `sparse_jax.solvers.sparsegpt` for the arguments.

    Without `reference`, a block prunes the difference of the rounded-down cumulative
    targets at its two edges (prior masks must be spread evenly over blocks here).

    Returns:
      (weights, mask), True = kept.
    """
    W = np.array(W, np.float64)
    prior = np.ones(W.shape, bool) if prior_mask is None else prior_mask
    U = _inverse_factor(W, H, damping)
    n_in = W.shape[1]
    Q, kept = np.zeros_like(W), prior.copy()
    for start in range(0, n_in, block_size):
        stop = min(start + block_size, n_in)
        if not isinstance(pattern, NM):
            chosen = _rank_block(W, U, prior, pattern, start, stop, reference)
            kept[:, start:stop] &= chosen
        for j in range(start, stop):
            if isinstance(pattern, NM) and j % pattern.m == 0:
                group = slice(j, j + pattern.m)
                kept[:, group] &= _rank_groups(W, U, prior, pattern, group)
            w = W[:, j].copy()
            q = w if quantizer is None else quantizer(w, j)
            Q[:, j] = np.where(kept[:, j], q, 0.0)
            W[:, j:] -= np.outer((w - Q[:, j]) / U[j, j], U[j, j:])
    return Q, kept


def _inverse_factor(W: np.ndarray, H: np.ndarray, damping: float) -> np.ndarray:
    """Upper Cholesky factor U of the inverse of the damped H; zeroes dead columns."""
    H = np.array(H, np.float64)
    dead = np.diag(H) == 0
    H[dead, dead] = 1.0
    W[:, dead] = 0.0
    H += damping * np.mean(np.diag(H)) * np.eye(len(H))
    return np.linalg.cholesky(np.linalg.inv(H)).T


def _rank_block(W, U, prior, pattern, start, stop, reference):
    """Chooses the units of a block by the output error of removing each of them."""
    bo, bi = pattern.unit
    n_out, n_in = W.shape
    costs = np.empty((n_out // bo, (stop - start) // bi))
    for column in range(costs.shape[1]):
        members = slice(start + column * bi, start + (column + 1) * bi)
        # The inverse Hessian of what is left, restricted to the unit.
        remaining = U[members, members].T @ U[members, members]
        w = np.where(prior[:, members], W[:, members], 0.0)
        cost = np.einsum("oi,ij,oj->o", w, np.linalg.inv(remaining), w)
        cost = cost.reshape(-1, bo).sum(1)
        alive = prior[:, members].reshape(-1, bo * bi).any(1)
        costs[:, column] = np.where(alive, cost, -np.inf)
    if reference:
        n_pruned = int(costs.size * pattern.sparsity)
        kept = costs > np.sort(costs.ravel())[n_pruned]
    else:
        total = int(n_out // bo * (n_in // bi) * pattern.sparsity)
        n_pruned = total * stop // n_in - total * start // n_in
        order = np.argsort(costs.ravel()[::-1], kind="stable")  # ties: keep the first
        kept = np.ones(costs.size, bool)
        kept[costs.size - 1 - order[:n_pruned]] = False
    return kept.reshape(costs.shape).repeat(bo, 0).repeat(bi, 1)


def _rank_groups(W, U, prior, pattern, group):
    """Chooses n of the m weights of a group, for every row."""
    costs = (W[:, group] / np.diag(U)[group]) ** 2
    costs = np.where(prior[:, group], costs, -np.inf)
    order = np.argsort(-costs, axis=1, kind="stable")
    kept = np.zeros(costs.shape, bool)
    np.put_along_axis(kept, order[:, : pattern.n], True, axis=1)
    return kept


def relative_error(W: ArrayLike, Q: ArrayLike, H: ArrayLike) -> float:
    """tr(D H D^T) / tr(W H W^T) with D = Q - W, in float64."""
    W, Q, H = (np.asarray(array, np.float64) for array in (W, Q, H))
    return float(np.sum((Q - W) @ H * (Q - W)) / np.sum(W @ H * W))


def least_squares(W: ArrayLike, H: ArrayLike, mask: ArrayLike) -> np.ndarray:
    """The best weights on a mask, from the normal equations of every row."""
    W, H = np.asarray(W, np.float64), np.asarray(H, np.float64)
    best = np.zeros_like(W)
    for row, kept in enumerate(np.asarray(mask)):
        target = (W[row] @ H)[kept]
        best[row, kept] = np.linalg.lstsq(H[np.ix_(kept, kept)], target, rcond=1e-12)[0]
    return best


def admm(
    W: ArrayLike, H: ArrayLike, pattern: Pattern, *, iterations: int = 24
) -> tuple[np.ndarray, np.ndarray]:
    """Searches as `sparse_jax.solvers.admm` does, undamped, in the paper's variables.

    Returns:
      (weights, mask), True = kept, with the best weights on the mask.
    """
    W, H = np.asarray(W, np.float64), np.asarray(H, np.float64)
    scale = np.sqrt(np.diag(H))
    inputs = np.where(scale > 0, 1 / np.where(scale > 0, scale, 1), 0)
    scaled, target = H * np.outer(inputs, inputs), W * scale
    mask = _project(target, pattern)
    D, V = np.where(mask, target, 0), np.zeros_like(W)
    for rho in np.geomspace(0.1, 1.0, iterations // 2).repeat(2):
        system = scaled + rho * np.eye(len(H))
        B = np.linalg.solve(system, (target @ scaled - V + rho * D).T).T
        B = 1.3 * B + (1 - 1.3) * D
        mask = _project(B + V / rho, pattern)
        D = np.where(mask, B + V / rho, 0)
        V = V + rho * (B - D)
    return least_squares(W, H, mask), mask


def _project(values, pattern):
    return np.asarray(pattern.project((values**2).astype(np.float32)))
