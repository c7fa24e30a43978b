"""A low-rank term that makes up for what pruning and rounding took from a matrix."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from sparse_jax.quant.fit import fit
from sparse_jax.quant.grid import GridConfig, round_to_grid, storage_bits

FACTOR_BITS = 16.0
"""Of an entry of a factor that has no grid."""

_LEAST = 1e-3  # of the largest saliency: inputs that are almost silent


@functools.partial(jax.jit, static_argnames=("rank", "grid"))
def low_rank(
    lost: Float[Array, "in out"],
    size: Float[Array, " in"],
    rank: int,
    grid: GridConfig | None = None,
) -> tuple[Float[Array, "in r"], Float[Array, "r out"]]:
    """The factors X and S whose product is nearest to what was lost.

        minimise |diag(x) (E - X S)|_F,   E = W - W',   x_j = sqrt(mean X_j^2)

    by the singular value decomposition of diag(x) E; diag(1/x) then is part of X.

    Source: SLiM, https://arxiv.org/abs/2410.09615

    Args:
      lost: E.
      size: x, the inputs' root mean square; small ones are raised to 1e-3 of the
        largest.
      rank: r.
      grid: what the factors are rounded to; None leaves them.

    Example:
      >>> x, s = low_rank(jnp.array([[2.0, 4.0], [1.0, 2.0]]), jnp.ones(2), 1)
      >>> (x @ s).round(4).tolist()
      [[2.0, 4.0], [1.0, 2.0]]
    """
    largest = jnp.max(size)
    size = jnp.where(largest > 0, jnp.maximum(size, _LEAST * largest), 1.0)
    u_IR, values_R, v_RO = jnp.linalg.svd(size[:, None] * lost, full_matrices=False)
    root_R = jnp.sqrt(values_R[:rank])
    x_IR = u_IR[:, :rank] * root_R / size[:, None]
    s_RO = root_R[:, None] * v_RO[:rank]
    if grid is None:
        return _to_16_bits(x_IR), _to_16_bits(s_RO)
    return _to_grid(x_IR, grid), _to_grid(s_RO, grid)


def _to_grid(factor: Array, grid: GridConfig) -> Array:
    return round_to_grid(factor, fit(factor, grid, axis=-2), axis=-2)


def _to_16_bits(factor: Array) -> Array:
    return factor.astype(jnp.bfloat16).astype(jnp.float32)


def low_rank_bits(
    rank: int, n_in: int, n_out: int, grid: GridConfig | None = None
) -> float:
    """Bits of the two factors, all together.

    Example:
      >>> low_rank_bits(2, 8, 4)
      384.0
    """
    if grid is None:
        return FACTOR_BITS * rank * (n_in + n_out)
    first = storage_bits(grid, n_in) * n_in * rank
    return first + storage_bits(grid, rank) * rank * n_out
