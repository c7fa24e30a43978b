"""The column rule inside a block: prune a column, move its error to its right.

    p_j = v_j - q_j,    v_k <- v_k - p_j U_jk / U_jj  for k > j

with e_j = p_j / U_jj in the paper. A few columns are done one by one, and then hand on
what they lost together. Weights are transposed, [in, out].
"""

from functools import partial

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from sparse_jax.solvers.blocks import (
    matmul,
    padded_columns,
    place,
    rows,
    square,
    sweep,
    tile_width,
)
from sparse_jax.solvers.choose import keep_of_group
from sparse_jax.solvers.problem import Quantizer

ONE_BY_ONE = 16
"""Columns that are done one by one: an unrolled loop."""


def prune_columns(
    v_BO: Float[Array, "B O"],
    ut_BB: Float[Array, "B B"],
    kept_BO: Bool[Array, "B O"],
    first_input: Int[Array, ""],
    quantizer: Quantizer | None,
    group: int,
    n_kept: Int[Array, "..."],
) -> tuple[Float[Array, "B O"], Bool[Array, "B O"]]:
    """Prunes a block column by column.

    Args:
      v_BO: the block's weights, compensated for everything pruned to its left.
      ut_BB: diagonal block of U^T.
      kept_BO: what is kept; with a group, what may be kept.
      first_input: index of the block's first column.
      quantizer: rounds what is kept.
      group: m <= ONE_BY_ONE of an N:M pattern, whose groups are chosen when their first
        column comes; 0 where all is chosen already.
      n_kept: n of that pattern.

    Returns:
      (weights, mask) of the block.
    """
    n_columns = len(v_BO)
    width = ONE_BY_ONE // group * group if group else ONE_BY_ONE
    n_padded = padded_columns(n_columns, width)
    pad = (0, n_padded - n_columns)
    scale_B = jnp.pad(1 / jnp.diagonal(ut_BB), pad)
    ct_BB = jnp.pad(jnp.tril(ut_BB, -1), (pad, pad)) * scale_B  # U_jk / U_jj

    def prune_few(start, carry):
        v_BO, p_BO, kept_BO = carry
        few = partial(rows, start=start, size=width)
        v_SO, p_SO, kept_SO = _prune_one_by_one(
            few(v_BO),
            few(kept_BO),
            square(ct_BB, (start, start), width),
            few(scale_B),
            first_input + start,
            quantizer,
            group,
            n_kept,
        )
        if group:
            kept_BO = place(kept_BO, kept_SO, start)
        return place(v_BO, v_SO, start), place(p_BO, p_SO, start), kept_BO

    def absorb(start, source, size, carry):
        v_BO, p_BO, kept_BO = carry
        ct_SS = square(ct_BB, (start, source), size)
        error_SO = matmul(ct_SS, rows(p_BO, source, size))
        v_BO = place(v_BO, rows(v_BO, start, size) - error_SO, start)
        return v_BO, p_BO, kept_BO

    v_BO, kept_BO = (jnp.pad(array, (pad, (0, 0))) for array in (v_BO, kept_BO))
    carry = (v_BO, jnp.zeros_like(v_BO), kept_BO)
    tile = tile_width(n_columns, width)
    q_BO, _, kept_BO = sweep(prune_few, absorb, n_padded, tile, width, carry)
    return q_BO[:n_columns], kept_BO[:n_columns]


def _prune_one_by_one(v_SO, kept_SO, ct_SS, scale_S, index, quantizer, group, n_kept):
    """Returns what is left of each column, what was removed from it, and the mask."""
    v_UO = v_SO  # the columns that are not done yet
    left, removed, kept = [], [], list(kept_SO)
    for i in range(len(v_SO)):
        if group and i % group == 0:
            members = slice(i, i + group)
            saliency_MO = v_UO[:group] * scale_S[members, None]
            kept[members] = keep_of_group(saliency_MO, kept_SO[members], n_kept)
        value_O = v_UO[0]
        if quantizer is not None:
            value_O = quantizer(value_O, index + i)
        q_O = jnp.where(kept[i], value_O, 0)
        # Sliced a second time on purpose: XLA's code for CPUs (jax 0.10) is many times
        # slower where both uses share one slice.
        p_O = v_UO[0] - q_O
        left.append(q_O)
        removed.append(p_O)
        v_UO = v_UO[1:] - ct_SS[i + 1 :, i, None] * p_O
    return jnp.stack(left), jnp.stack(removed), jnp.stack(kept)
