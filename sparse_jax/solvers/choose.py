"""Choosing what a block of columns keeps, exactly and without a sort.

All of it works on transposed weights [in, out], like `sparsegpt`.
"""

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from sparse_jax.solvers.blocks import matmul
from sparse_jax.sparsity.select import cut, order_bits, value_at_rank
from sparse_jax.sparsity.units import rank_units, spread_units

_UNROLLED = 16  # members of a group


def keep_units(
    v_BO: Float[Array, "B O"],
    rt_BB: Float[Array, "B B"],
    real_B: Bool[Array, " B"],
    prior_BO: Bool[Array, "B O"],
    n_pruned: Int[Array, ""],
    unit: tuple[int, int],
    reference: bool,
) -> Bool[Array, "B O"]:
    """Chooses the units to keep in a block from its weights at the block's start.

    Args:
      v_BO: the weights.
      rt_BB: diagonal block of R^T; removing a unit g of a row costs |v_g R_gg|^2.
      real_B: False in the padding, which is ranked highest.
      prior_BO: False where pruned before, which is ranked lowest.
      n_pruned: units to prune.
      unit: (out, in) extent of a unit.
      reference: prune one unit more, and all that tie with it.
    """
    n_rows, n_columns = unit
    v_BO = jnp.where(prior_BO, v_BO, 0)
    if n_columns == 1:
        cost_BO = (v_BO * jnp.diagonal(rt_BB)[:, None]) ** 2
    else:
        same_unit = np.arange(len(rt_BB)) // n_columns
        rt_BB = jnp.where(same_unit[:, None] == same_unit, rt_BB, 0)
        cost_BO = matmul(rt_BB, v_BO) ** 2
    cost = rank_units(cost_BO, prior_BO, (n_columns, n_rows))
    cost = jnp.where(real_B[::n_columns, None], cost, jnp.inf)
    keys = order_bits(cost)
    if reference:
        bound, n_below = cut(keys, n_pruned + 1)
        kept = (keys > bound) | ((keys == bound) & (n_below > n_pruned))
    else:
        bound, n_below = cut(keys, n_pruned)
        n_ties = n_pruned - n_below
        drop = lax.cond(n_ties > 0, _last_ties, _no_ties, keys, bound, n_ties)
        kept = (keys >= bound) & ~drop
    return spread_units(kept, (n_columns, n_rows))


def _no_ties(keys, bound, n):
    return jnp.zeros(keys.shape, bool)


def _last_ties(keys, bound, n):
    """Of the keys that equal the bound, the `n` last ones in the order (out, in)."""
    n_in, n_out = keys.shape
    from_end = jnp.arange(keys.size - 1, -1, -1, dtype=jnp.uint32)
    from_end = from_end.reshape(n_out, n_in).T
    position = jnp.where(keys == bound, from_end, jnp.uint32(keys.size))
    return position <= value_at_rank(position, n - 1, keys.size.bit_length())


def keep_of_group(
    saliency_MO: Float[Array, "M O"],
    prior_MO: Bool[Array, "M O"],
    n_kept: Int[Array, ""] | int,
) -> Bool[Array, "M O"]:
    """Keeps the `n_kept` of every column's M that are the furthest from zero.

    Args:
      saliency_MO: v_j / U_jj. Of equal ones the first is kept.
      prior_MO: False where pruned before, which is ranked lowest.
      n_kept: n of an N:M pattern.

    Example:
      >>> saliency, prior = jnp.array([[1.0], [-2.0], [2.0]]), jnp.ones((3, 1), bool)
      >>> keep_of_group(saliency, prior, 1)[:, 0].tolist()
      [False, True, False]
    """
    m = len(saliency_MO)
    index_M1 = np.arange(m)[:, None]

    def choose():
        cost_MO = jnp.where(prior_MO, saliency_MO**2, -jnp.inf)

        def count_better(j, rank_MO):
            rival_O = cost_MO[j]
            better = (rival_O > cost_MO) | ((rival_O == cost_MO) & (j < index_M1))
            return rank_MO + better

        rank_MO = jnp.zeros(cost_MO.shape, jnp.int32)
        rank_MO = lax.fori_loop(0, m, count_better, rank_MO, unroll=m <= _UNROLLED)
        return prior_MO & (rank_MO < n_kept)

    # Unlike an expression, a branch is never computed again in each of its uses.
    return lax.cond(n_kept < m, choose, lambda: prior_MO)
