"""Least squares on a fixed support, and SparseGPT's mask followed by it.

SparseGPT compensates every error once, in the columns to its right. Given its mask S,
the best weights are another problem, convex and separate for every row w of W:

    minimise (x - w) H (x - w)^T over x that are zero outside S

Conjugate gradients, preconditioned by the diagonal of H, solve it for all rows at once:
an iteration is one product with H, however different the rows' supports are.

    z = ((w - x) H)_S diag(H)^-1/2    the residual, zero where x is the solution
    p                                 search direction, zero outside S
    a = z z^T / p H p^T               step
    q = z / |z|                       an earlier residual; all of them are orthonormal

In float32 the residuals do not stay orthogonal: H has a few large eigenvalues, and what
rounding leaves along their directions grows in every iteration once CG is done with
them. Ten iterations make 1e-3 of 1e-7, another 1e-3 for every order in which H was
summed up, and later blocks amplify it. So each residual is made orthogonal to those
before it again (Paige 1970, "Practical use of the symmetric Lanczos process with
re-orthogonalization", BIT 10): then the outputs differ as little as H does.

H is undamped here, because that is the error to minimise: a singular H only leaves the
solution where it is in the directions that H does not see. Damping enters in one case:
if the factorisation needed more of it than asked for, H is not positive definite, and
the error is measured with that much damping.
"""

from dataclasses import replace
from functools import partial
from math import gcd

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from sparse_jax import host
from sparse_jax.solvers.blocks import largest_divisor, matmul
from sparse_jax.solvers.problem import (
    Problem,
    Solution,
    check_count,
    check_scale,
    need_hessian,
    row_shards,
)
from sparse_jax.solvers.sparsegpt import sparsegpt
from sparse_jax.sparsity.patterns import NM

ITERATIONS = 30
TOLERANCE = 1e-3
_KEPT = ITERATIONS  # residuals; of more iterations, the first ones and the last
_ROWS = 128  # of a panel, which needs 40 copies of it; more are hardly faster
_WIDE = 4096  # columns of H that are multiplied by at once


def sparsegpt_refit(
    problems: dict[str, Problem],
    hessian: Float[Array, "*lead in in"] | None,
    *,
    reference: bool = False,
    block_size: int | None = None,
    damping: float = 0.01,
    iterations: int = ITERATIONS,
    tolerance: float = TOLERANCE,
) -> dict[str, Solution]:
    """SparseGPT's mask with the best weights on it; never worse than SparseGPT.

    A row whose error did not fall, in float32, keeps SparseGPT's weights. With a
    quantizer the best real weights on the mask are rounded by SparseGPT's column rule:
    on the mask, the distance to them is the error, up to a constant.

    Args:
      problems: matrices that share an input.
      hessian: undamped H.
      reference: see `sparsegpt`, as are block_size and damping; they choose the mask.
      block_size: columns that are ranked together.
      damping: relative damping of the factorisation; the refit itself is undamped.
      iterations: most iterations of conjugate gradients; each costs one product of the
        weights with H.
      tolerance: a row takes a smaller share of the steps after one that lowers its
        error by less than this fraction, none after one that does by half of it: with
        a bound, rounding would decide who takes another step.

    Raises:
      InputError: as `sparsegpt`, or an option that is not valid.

    Example:
      >>> from sparse_jax.solvers import solve
      >>> from sparse_jax.sparsity import Unstructured
      >>> W, H = jnp.array([[2.0, 1.0]]), jnp.array([[2.0, 1.0], [1.0, 2.0]])
      >>> solve("sparsegpt_refit", W, H, Unstructured(0.5)).weights.tolist()
      [[2.5, 0.0]]
    """
    hessian = need_hessian("sparsegpt_refit", hessian)
    check_count("iterations", iterations)
    check_scale("tolerance", tolerance)
    options = {"reference": reference, "block_size": block_size, "damping": damping}
    solutions = sparsegpt(problems, hessian, **options)
    refitted = refit(solutions, damping, iterations, tolerance)
    kept = {}
    for name, solution in refitted.items():
        first = solutions[name]
        matrices = first.problem.weights, first.weights, solution.weights
        options = {"shards": row_shards(first.problem.weights)}
        weights = _better_rows(*matrices, hessian, _ridge(first, damping), **options)
        kept[name] = replace(solution, weights=weights)
    return kept


def refit(
    solutions: dict[str, Solution],
    damping: float,
    iterations: int = ITERATIONS,
    tolerance: float = TOLERANCE,
) -> dict[str, Solution]:
    """Gives solutions that share a Hessian the best weights on their masks.

    Args:
      solutions: masks, and weights to start from; any solver's that knew the Hessian.
      damping: the relative damping that was asked for.
      iterations: see `sparsegpt_refit`.
      tolerance: see `sparsegpt_refit`.
    """
    refitted = {}
    for name, solution in solutions.items():
        matrices = solution.problem.weights, solution.weights, solution.mask
        weights = host.run_lean(
            _least_squares,
            *matrices,
            solution.hessian,
            _ridge(solution, damping),
            iterations,
            tolerance,
            shards=row_shards(solution.problem.weights),
        )
        refitted[name] = replace(solution, weights=weights)
    return refitted | _round(refitted, damping)


def _round(solutions, damping):
    """Rounds on the masks, where a problem has a quantizer, with compensation."""
    problems = {}
    for name, solution in solutions.items():
        quantizer, n_in = solution.problem.quantizer, solution.weights.shape[-1]
        if quantizer is not None:
            # m of m may be kept: nothing is pruned but what the mask prunes already.
            m = gcd(n_in, 8)
            problems[name] = Problem(
                solution.weights, NM(m, m), solution.mask, quantizer
            )
    if not problems:
        return {}
    hessian = next(iter(solutions.values())).hessian
    rounded = sparsegpt(problems, hessian, damping=damping)
    return {
        name: replace(solutions[name], weights=rounded[name].weights)
        for name in rounded
    }


def _ridge(solution, damping):
    """Damping that had to be added beyond what was asked for, else zero [M]."""
    n_matrices = int(np.prod(solution.weights.shape[:-2]))
    if solution.damping is None or np.max(solution.damping) <= damping * 1.001:
        return np.zeros(n_matrices, np.float32)
    scale = jnp.mean(jnp.diagonal(solution.hessian, axis1=-2, axis2=-1), -1)
    raised = np.where(solution.damping > damping * 1.001, solution.damping, 0)
    return jnp.broadcast_to(scale * raised, solution.weights.shape[:-2]).reshape(-1)


def _map_matrices(function, matrices, hessian, ridge_M, shards):
    """Maps over the panels of rows of all matrices; a shared Hessian is not copied.

    Every panel has as many rows of each of the `shards` devices.
    """
    shape = matrices[0].shape
    rows = largest_divisor(shape[-2] // shards, _ROWS)
    cut = (len(ridge_M), shards, -1, rows, shape[-1])
    panels = tuple(matrix.reshape(cut).swapaxes(1, 2) for matrix in matrices)
    by_panel = panels[0].shape
    panels = tuple(a.reshape(*a.shape[:2], -1, shape[-1]) for a in panels)

    def map_panels(panels, hessian_II, ridge):
        return lax.map(lambda a: function(*a, hessian_II, ridge), panels)

    if hessian.ndim == 2:
        mapped = lax.map(lambda a: map_panels(a[0], hessian, a[1]), (panels, ridge_M))
    else:
        hessian_MII = hessian.reshape(-1, *hessian.shape[-2:])
        mapped = lax.map(lambda a: map_panels(*a), (panels, hessian_MII, ridge_M))
    return mapped.reshape(by_panel).swapaxes(1, 2).reshape(shape)


@partial(jax.jit, static_argnames="shards")
def _least_squares(
    weights, start, mask, hessian, ridge_M, iterations, tolerance, *, shards
):
    def solve_one(w_OI, x_OI, mask_OI, hessian_II, ridge):
        diagonal_I = jnp.diagonal(hessian_II)
        multiply = partial(_multiply, hessian_II=hessian_II, ridge=ridge)
        w_OI, x_OI = w_OI.astype(jnp.float32), x_OI.astype(jnp.float32)
        # A row that keeps everything is solved, all but its dead inputs.
        whole_OI = mask_OI.all(1)[:, None] & (diagonal_I > 0)
        x_OI = jnp.where(whole_OI, w_OI, x_OI)
        root_I = lax.rsqrt(jnp.where(diagonal_I > 0, diagonal_I + ridge, 1))
        # Below this a row's residual is rounding, and directions made of it mislead.
        rounding_O = 1e-12 * jnp.sum(w_OI**2 * diagonal_I, 1)
        x_OI = _conjugate_gradients(
            w_OI, x_OI, mask_OI, multiply, root_I, rounding_O, iterations, tolerance
        )
        return x_OI.astype(weights.dtype)

    return _map_matrices(solve_one, (weights, start, mask), hessian, ridge_M, shards)


def _conjugate_gradients(
    w_OI, x_OI, mask_OI, multiply, root_I, rounding_O, iterations, tolerance
):
    """Minimises the error of every row, whatever the others do, from `x_OI` on."""
    pull_OI = multiply(w_OI - x_OI)
    error_O = _dot(w_OI - x_OI, pull_OI)
    z_OI = jnp.where(mask_OI, pull_OI * root_I, 0)

    def unfinished(carry):
        *_, share_O, done = carry
        return (done < iterations) & (share_O > 0).any()

    def step(carry):
        x_OI, z_OI, p_OI, zz_O, error_O, q_KOI, share_O, done = carry
        q_OI = z_OI * jnp.where(share_O > 0, lax.rsqrt(zz_O), 0)[:, None]
        q_KOI = q_KOI.at[jnp.minimum(done, _KEPT - 1)].set(q_OI)
        hp_OI = jnp.where(mask_OI, multiply(p_OI), 0)
        a_O = _ratio(zz_O, _dot(p_OI, hp_OI)) * (share_O > 0)
        x_OI = x_OI + (share_O * a_O)[:, None] * p_OI
        z_OI = z_OI - a_O[:, None] * (hp_OI * root_I)

        def orthogonalize(k, z_OI):
            return z_OI - _dot(z_OI, q_KOI[k])[:, None] * q_KOI[k]

        z_OI = lax.fori_loop(0, jnp.minimum(done + 1, _KEPT), orthogonalize, z_OI)
        new_zz_O = _dot(z_OI, z_OI)
        p_OI = z_OI * root_I + _ratio(new_zz_O, zz_O)[:, None] * p_OI
        gain_O = a_O * zz_O  # by how much this step lowered the error
        error_O = error_O - gain_O
        enough_O = tolerance * jnp.maximum(error_O, 0)
        share_O *= jnp.clip(_ratio(2 * gain_O, enough_O, jnp.inf) - 1, 0, 1)
        share_O *= (gain_O > 0) & (new_zz_O > rounding_O)
        return x_OI, z_OI, p_OI, new_zz_O, error_O, q_KOI, share_O, done + 1

    zz_O, q_KOI = _dot(z_OI, z_OI), jnp.zeros((_KEPT, *z_OI.shape))
    share_O = (zz_O > rounding_O).astype(jnp.float32)  # of a step that a row takes
    carry = (x_OI, z_OI, z_OI * root_I, zz_O, error_O, q_KOI, share_O, 0)
    return lax.while_loop(unfinished, step, carry)[0]


def _dot(x_OI, y_OI):
    """Inner products of rows; on CPUs a product with ones is faster than a sum."""
    return matmul(x_OI * y_OI, jnp.ones(x_OI.shape[1]))


def _multiply(x_OI, hessian_II, ridge):
    n_in = len(hessian_II)
    width = largest_divisor(n_in, 1024)
    if n_in <= _WIDE or width < 256:
        return matmul(x_OI, hessian_II) + ridge * x_OI

    # XLA reorders all of a product's right-hand side first: here a panel, and not H.
    def panel(i, product_OI):
        h_IP = lax.dynamic_slice_in_dim(hessian_II, i * width, width, 1)
        product_OP = matmul(x_OI, h_IP)
        return lax.dynamic_update_slice_in_dim(product_OI, product_OP, i * width, 1)

    product_OI = lax.fori_loop(0, n_in // width, panel, jnp.zeros_like(x_OI))
    return product_OI + ridge * x_OI


def _ratio(numerator, denominator, otherwise=0):
    """Their ratio; zero, or `otherwise`, where nothing is left or H is not positive."""
    positive = denominator > 0
    ratio = numerator / jnp.where(positive, denominator, 1)
    return jnp.where(positive, ratio, otherwise)


@partial(jax.jit, static_argnames="shards")
def _better_rows(weights, first, second, hessian, ridge_M, *, shards):
    """Takes every row from the candidate with the lower error; ties from the first."""

    def choose(w_OI, first_OI, second_OI, hessian_II, ridge):
        def error(x_OI):
            d_OI = x_OI.astype(jnp.float32) - w_OI.astype(jnp.float32)
            return jnp.sum(d_OI * _multiply(d_OI, hessian_II, ridge), 1)

        better_O = error(second_OI) < error(first_OI)
        return jnp.where(better_O[:, None], second_OI, first_OI)

    return _map_matrices(choose, (weights, first, second), hessian, ridge_M, shards)
