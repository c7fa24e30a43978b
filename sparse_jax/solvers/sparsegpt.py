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
from math import ceil

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from sparse_jax import host
from sparse_jax.mesh import to_host
from sparse_jax.solvers.blocks import (
    matmul,
    padded_columns,
    place,
    rows,
    square,
    sweep,
    tile_width,
)
from sparse_jax.solvers.choose import keep_of_group, keep_units
from sparse_jax.solvers.columns import ONE_BY_ONE, prune_columns
from sparse_jax.solvers.hessian import Factor, factorize
from sparse_jax.solvers.problem import Problem, Solution, as_partial
from sparse_jax.sparsity.patterns import (
    NM,
    Pattern,
    UnitPattern,
    Unstructured,
    check_nesting,
)
from sparse_jax.sparsity.select import quotas
from sparse_jax.sparsity.units import group_units
from sparse_jax.types import InputError


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
    if isinstance(pattern, UnitPattern) and pattern.per_row:
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
    if isinstance(problem.pattern, NM) and extent > ONE_BY_ONE:
        return extent  # wide groups are chosen where a block starts
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
        n_blocks = padded_columns(matrix[1], block) // block
        pad = [(0, 0)] * (counts.ndim - 1) + [(0, n_blocks - counts.shape[-1])]
        counts = np.broadcast_to(np.pad(counts, pad), (*lead, n_blocks))
    weights_IO = _transpose(weights.astype(jnp.float32))
    if problem.prior_mask is None:
        prior = jnp.ones_like(weights_IO, bool)
    else:
        prior = _transpose(problem.prior_mask)
    # D, in the memory of W, is not needed any more.
    pruned, mask = host.run_lean(
        _prune,
        weights_IO,
        factor[:3],
        prior,
        counts,
        as_partial(problem.quantizer),
        unit=unit,
        group=group,
        reference=reference,
    )[1:]
    pruned, mask = _transpose(pruned).astype(weights.dtype), _transpose(mask)
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
    dead = to_host(_dead_per_block(prior_mask, pattern.unit, block)).astype(np.int64)
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


@partial(
    jax.jit,
    static_argnames=("unit", "group", "reference"),
    donate_argnames=("weights", "prior"),
)
def _prune(weights, factor, prior, counts, quantizer, *, unit, group, reference):
    """Prunes every matrix; `group` is m of N:M patterns and 0 for units."""
    lead = weights.shape[:-2]
    n_matrices = int(np.prod(lead))

    def flatten(leaf, n_kept):
        return leaf.reshape(n_matrices, *leaf.shape[leaf.ndim - n_kept :])

    shared = len(factor[0]) == 1  # and then not copied for every matrix
    problems = (
        flatten(weights, 2),
        None if shared else factor,
        flatten(prior, 2),
        flatten(counts, counts.ndim - len(lead)),
        jax.tree.map(lambda leaf: flatten(leaf, leaf.ndim - len(lead)), quantizer),
    )

    def prune_one(problem):
        w_IO, own_factor, *rest = problem
        one_factor = [leaf[0] for leaf in factor] if shared else own_factor
        options = {"unit": unit, "group": group, "reference": reference}
        return _prune_matrix(w_IO, one_factor, *rest, **options)

    solved = lax.map(prune_one, problems)
    return tuple(array.reshape(weights.shape) for array in solved)


def _prune_matrix(w_IO, factor, prior_IO, counts, quantizer, *, unit, group, reference):
    """Prunes one matrix block by block; returns its weights and mask [in, out]."""
    rt_PP, ut_NBB, dead_P = factor
    n_in, block = len(w_IO), ut_NBB.shape[-1]
    pad = ((0, len(rt_PP) - n_in), (0, 0))

    # Up to the block at hand, `d` holds D and `q` holds Q; from it on, `d` holds W and
    # `q` holds (D R) so far. Neither needs memory of its own.
    def prune_block(start, carry):
        d_PO, q_PO, kept_PO = carry
        ut_BB, kept_BO = ut_NBB[start // block], rows(kept_PO, start, block)
        w_BO = jnp.where(
            rows(dead_P, start, block)[:, None], 0, rows(d_PO, start, block)
        )
        v_BO = w_BO + matmul(ut_BB, rows(q_PO, start, block))
        if group > ONE_BY_ONE:  # and then is the block
            saliency_BO = v_BO / jnp.diagonal(ut_BB)[:, None]
            kept_BO = keep_of_group(saliency_BO, kept_BO, counts)
        elif not group:
            rt_BB = square(rt_PP, (start, start), block)
            real_B = start + jnp.arange(block) < n_in
            count = counts[start // block]
            kept_BO &= keep_units(v_BO, rt_BB, real_B, kept_BO, count, unit, reference)
        column_group = group if group <= ONE_BY_ONE else 0
        q_BO, kept_BO = prune_columns(
            v_BO, ut_BB, kept_BO, start, quantizer, column_group, counts
        )
        d_PO, q_PO = place(d_PO, w_BO - q_BO, start), place(q_PO, q_BO, start)
        return d_PO, q_PO, place(kept_PO, kept_BO, start)

    def absorb(start, source, width, carry):
        d_PO, q_PO, kept_PO = carry
        rt_WW = square(rt_PP, (start, source), width)
        sum_WO = rows(q_PO, start, width) + matmul(rt_WW, rows(d_PO, source, width))
        return d_PO, place(q_PO, sum_WO, start), kept_PO

    w_PO = jnp.pad(w_IO, pad)
    kept_PO = jnp.pad(prior_IO, pad, constant_values=True)
    tile = tile_width(n_in, block)
    carry = (w_PO, jnp.zeros_like(w_PO), kept_PO)
    carry = sweep(prune_block, absorb, len(w_PO), tile, block, carry)
    return tuple(array[:n_in] for array in carry)


@jax.jit
def _transpose(matrices):
    # On its own: XLA's code for a transpose that it fuses with others is slow on CPUs.
    return jnp.swapaxes(matrices, -1, -2)
