"""SparseGPT without an explicit inverse and without a sort.

Reference: Frantar & Alistarh 2023, "SparseGPT: Massive Language Models Can Be
Accurately Pruned in One-Shot", arXiv 2301.00774. Symbols:

    W, Q   weights before and after, D = W - Q
    R, U   H = R R^T and U = R^-1, upper triangular (see `hessian`)
    V      weights of a block, compensated for everything pruned to their left

The paper keeps all columns up to date. Here a block is brought up to date when its turn
comes, from what was removed so far ("left-looking"), which gives the same numbers:

    V_B = W_B + (D_<B R_<B,B) U_BB

Inside a block, column j is pruned and its error moves to the columns on its right:

    e_j = (v_j - q_j) / U_jj,    v_k <- v_k - U_jk e_j  for k > j

What to prune
- Units of one or several weights (unstructured, Group, Block) are chosen at the start
  of a block. Removing a unit g of a row costs |v_g R_gg|^2, which for one weight is the
  paper's v^2 / U_jj^2; a Block adds this up over its rows. All rows compete.
- N:M groups are chosen when their first column comes, from the up-to-date weights.
- Exact counts (default): the matrix prunes `int(units * sparsity)` units, and every
  block the same fraction of the units that it still has, by cumulative rounding.
- `reference=True`: every block prunes all scores <= sort(scores)[int(numel *
  sparsity)], as the public implementation does, which is one entry more, plus ties.

Entries that a prior mask has pruned rank lowest, and are pruned again at their column:
whatever compensation has moved into them moves on to the columns on their right, so
they end as exact zeros and the others make up for them. Everything works on transposed
weights [in, out], where a column of W is contiguous.
"""

from functools import partial
from math import ceil, gcd

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from sparse_jax.solvers.hessian import Factor, factorize
from sparse_jax.solvers.problem import Problem, Solution, as_partial
from sparse_jax.sparsity.patterns import (
    NM,
    Pattern,
    Unstructured,
    as_prior,
    check_nesting,
)
from sparse_jax.sparsity.select import (
    keep_highest,
    keep_per_group,
    order_bits,
    quotas,
    value_at_rank,
)
from sparse_jax.sparsity.units import group_units, rank_units, spread_units
from sparse_jax.types import InputError

_HIGHEST = lax.Precision.HIGHEST


def sparsegpt(
    problems: dict[str, Problem],
    hessian: Float[Array, "*lead in in"] | None,
    *,
    reference: bool = False,
    block_size: int | None = None,
    damping: float = 0.01,
) -> dict[str, Solution]:
    """Prunes matrices that share an input, with one factorisation for all of them.

    Args:
      problems: the matrices; each is ranked on its own.
      hessian: undamped H.
      reference: the public implementation's thresholds; unstructured and N:M only.
      block_size: columns that are ranked together. None means 128 in reference mode
        (the published choice), and otherwise 32, which prunes 4 to 10 % better. It is
        rounded up to a multiple of the pattern's extent along the inputs.
      damping: added to H's diagonal, relative to the diagonal's mean.

    Raises:
      InputError: there is no Hessian, or an option or a pattern is not valid here.
    """
    if hessian is None:
        raise InputError("solver 'sparsegpt' needs a Hessian, and none was given")
    if not (np.isfinite(damping) and damping >= 0):
        raise InputError(f"damping must be a finite number >= 0, found {damping!r}")
    if block_size is not None and block_size < 1:
        raise InputError(f"block_size must be a positive integer, found {block_size!r}")
    factors: dict[int, Factor] = {}
    solutions = {}
    for name, problem in problems.items():
        _check_supported(name, problem.pattern, reference)
        block = _block_columns(problem, block_size or (128 if reference else 32))
        if block not in factors:
            factors[block] = factorize(hessian, damping, block, ", ".join(problems))
        solutions[name] = _solve_one(problem, hessian, factors[block], block, reference)
    return solutions


def _check_supported(name: str, pattern: Pattern, reference: bool) -> None:
    if isinstance(pattern, Unstructured) and pattern.per_row:
        raise InputError(f"{name}: sparsegpt ranks all rows together; drop per_row")
    if reference and not isinstance(pattern, (Unstructured, NM)):
        raise InputError(
            f"{name}: reference=True knows unstructured and N:M patterns only, found "
            f"{pattern}"
        )


def _block_columns(problem: Problem, block_size: int) -> int:
    """Block size as a multiple of the pattern's extent, no wider than the matrix."""
    n_in = problem.weights.shape[-1]
    extent = problem.pattern.divisors[1]
    return ceil(min(block_size, n_in) / extent) * extent


def _solve_one(problem, hessian, factor, block, reference):
    weights, pattern = problem.weights, problem.pattern
    lead, matrix = weights.shape[:-2], weights.shape[-2:]
    if isinstance(pattern, NM):
        unit, group = (1, 1), pattern.m
        counts = np.full(lead, pattern.n, np.int32)
    else:
        unit, group = pattern.unit, 0
        counts = _block_counts(pattern, matrix, problem.prior_mask, block, reference)
        counts = np.broadcast_to(counts, (*lead, counts.shape[-1]))
    pruned, mask = _prune(
        weights,
        factor[:3],
        as_prior(problem.prior_mask, weights),
        counts,
        as_partial(problem.quantizer),
        unit=unit,
        group=group,
        reference=reference,
    )
    damping_M = np.broadcast_to(factor.damping, int(np.prod(lead)))
    return Solution(pruned, mask, problem, hessian, damping_M.reshape(lead))


def _block_counts(pattern, matrix, prior_mask, block, reference) -> np.ndarray:
    """Units to prune in each block, [*lead or 1, blocks]."""
    n_out, n_in = matrix[0] // pattern.unit[0], matrix[1] // pattern.unit[1]
    starts = np.arange(0, matrix[1], block)
    columns = np.minimum(starts + block, matrix[1]) - starts
    sizes = columns // pattern.unit[1] * n_out
    if reference:
        # In float64, as the public implementation counts.
        return np.array([int(size * float(pattern.sparsity)) for size in sizes])
    total = pattern.n_pruned(n_out * n_in)
    if prior_mask is None:
        return quotas(total, sizes)
    dead = np.asarray(_dead_per_block(prior_mask, pattern.unit, block), np.int64)
    check_nesting(pattern, total, dead.sum(-1), n_out * n_in)
    counts = [quotas(total, sizes, dead_N) for dead_N in dead.reshape(-1, len(sizes))]
    return np.stack(counts).reshape(dead.shape)


@partial(jax.jit, static_argnames=("unit", "block"))
def _dead_per_block(prior, unit, block):
    """Counts the units of each block of columns that hold no kept weight."""
    dead_OI = group_units(prior.astype(jnp.float32), unit) == 0
    dead_I = jnp.sum(dead_OI, -2)
    width = block // unit[1]
    pad = [(0, 0)] * (dead_I.ndim - 1) + [(0, -dead_I.shape[-1] % width)]
    return jnp.pad(dead_I, pad).reshape(*dead_I.shape[:-1], -1, width).sum(-1)


@partial(jax.jit, static_argnames=("unit", "group", "reference"))
def _prune(weights, factor, prior, counts, quantizer, *, unit, group, reference):
    """Prunes every matrix; `group` is m of N:M patterns and 0 for units."""
    lead = weights.shape[:-2]
    n_matrices = int(np.prod(lead))

    def flatten(leaf, n_kept):
        return leaf.reshape(n_matrices, *leaf.shape[leaf.ndim - n_kept :])

    rt, u, dead = (
        jnp.broadcast_to(leaf, (n_matrices, *leaf.shape[1:])) for leaf in factor
    )
    problem = (
        flatten(weights.astype(jnp.float32), 2),
        (rt, u, dead),
        flatten(prior, 2),
        flatten(counts, counts.ndim - len(lead)),
        jax.tree.map(lambda leaf: flatten(leaf, leaf.ndim - len(lead)), quantizer),
    )
    prune_one = partial(_prune_matrix, unit=unit, group=group, reference=reference)
    pruned, mask = lax.map(lambda args: prune_one(*args), problem)
    pruned = pruned.reshape(weights.shape).astype(weights.dtype)
    return pruned, mask.reshape(weights.shape)


def _prune_matrix(w_OI, factor, prior_OI, counts, quantizer, *, unit, group, reference):
    """Prunes one matrix block by block; returns its weights and mask [out, in]."""
    rt_PP, u_NBB, dead_P = factor
    n_in, block = w_OI.shape[1], u_NBB.shape[-1]
    pad = ((0, len(rt_PP) - n_in), (0, 0))
    w_PO = jnp.where(dead_P[:, None], 0, jnp.pad(w_OI.T, pad))
    prior_PO = jnp.pad(prior_OI.T, pad, constant_values=True)

    def prune_block(b, carry):
        removed_PO, pruned_PO, kept_PO = carry
        start = b * block
        rows = partial(_rows, start=start, size=block)
        u_BB, rt_BP, w_BO, kept_BO = u_NBB[b], rows(rt_PP), rows(w_PO), rows(prior_PO)
        # Rows of `removed` from this block on are still zero: no mask is needed.
        feedback_BO = jnp.matmul(rt_BP, removed_PO, precision=_HIGHEST)
        v_BO = w_BO + jnp.matmul(u_BB.T, feedback_BO, precision=_HIGHEST)
        if not group:
            r_BB = lax.dynamic_slice(rt_BP, (0, start), (block, block)).T
            real_B = start + jnp.arange(block) < n_in
            kept_BO &= _choose_units(
                v_BO, r_BB, real_B, kept_BO, counts[b], unit, reference
            )
        q_BO, kept_BO = _prune_columns(
            v_BO, u_BB, kept_BO, start, counts, quantizer, group
        )
        place = partial(lax.dynamic_update_slice, start_indices=(start, 0))
        return (
            place(removed_PO, w_BO - q_BO),
            place(pruned_PO, q_BO),
            place(kept_PO, kept_BO),
        )

    zeros = jnp.zeros_like(w_PO)
    carry = (zeros, zeros, jnp.zeros(w_PO.shape, bool))
    _, pruned_PO, kept_PO = lax.fori_loop(0, len(u_NBB), prune_block, carry)
    return pruned_PO[:n_in].T, kept_PO[:n_in].T


def _rows(array, start, size):
    return lax.dynamic_slice(array, (start, 0), (size, array.shape[1]))


def _choose_units(v_BO, r_BB, real_B, prior_BO, count, unit, reference):
    """Chooses the units to keep in a block from its weights at the block's start."""
    same_unit = np.arange(len(real_B)) // unit[1]
    r_BB = jnp.where(same_unit[:, None] == same_unit, r_BB, 0)
    v_BO = jnp.where(prior_BO, v_BO, 0)
    cost_OB = jnp.matmul(v_BO.T, r_BB, precision=_HIGHEST) ** 2
    if unit[1] == 1:
        cost_OB = (v_BO.T * jnp.diagonal(r_BB)) ** 2
    cost = rank_units(cost_OB, prior_BO.T, unit)
    cost = jnp.where(real_B[:: unit[1]], cost, jnp.inf)
    if reference:
        keys = order_bits(cost)
        kept = keys > value_at_rank(keys, count)
    else:
        kept = keep_highest(cost, count)
    return spread_units(kept, unit).T


def _prune_columns(v_BO, u_BB, kept_BO, start, n_kept, quantizer, group):
    """Prunes a block column by column; returns its weights and its mask.

    The block is brought up to date `step` columns at a time, left-looking again; N:M
    groups are chosen there.
    """
    block, n_out = v_BO.shape
    # Few columns at a time keeps the innermost updates inside the caches.
    step = group or gcd(block, 8)

    def prune_step(t, carry):
        errors_BO, q_BO, kept_BO = carry
        first = t * step
        rows = partial(_rows, start=first, size=step)
        u_BS = lax.dynamic_slice(u_BB, (0, first), (block, step))
        feedback_SO = jnp.matmul(u_BS.T, errors_BO, precision=_HIGHEST)
        v_SO, kept_SO, u_SS = rows(v_BO) - feedback_SO, rows(kept_BO), rows(u_BS)
        if group:
            cost_SO = (v_SO / jnp.diagonal(u_SS)[:, None]) ** 2
            cost_SO = jnp.where(kept_SO, cost_SO, -jnp.inf)  # pruned before: first
            kept_SO = kept_SO & keep_per_group(cost_SO.T, n_kept).T

        def prune_column(i, carry):
            v_SO, e_SO, q_SO = carry
            value_O = v_SO[i]
            if quantizer is not None:
                value_O = quantizer(value_O, start + first + i)
            q_O = jnp.where(kept_SO[i], value_O, 0)
            e_O = (v_SO[i] - q_O) / u_SS[i, i]
            # Row i of U is zero left of column i, so finished columns do not change.
            v_SO = v_SO - u_SS[i][:, None] * e_O
            return v_SO, e_SO.at[i].set(e_O), q_SO.at[i].set(q_O)

        zeros = jnp.zeros((step, n_out), v_BO.dtype)
        _, e_SO, q_SO = lax.fori_loop(0, step, prune_column, (v_SO, zeros, zeros))
        place = partial(lax.dynamic_update_slice, start_indices=(first, 0))
        return place(errors_BO, e_SO), place(q_BO, q_SO), place(kept_BO, kept_SO)

    zeros = jnp.zeros_like(v_BO)
    carry = (zeros, zeros, kept_BO)
    return lax.fori_loop(0, block // step, prune_step, carry)[1:]
