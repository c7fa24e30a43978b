"""A Cholesky factorisation made of matrix products.

    A = R R^T, R upper triangular

LAPACK's takes several times as long as as many flops in products, so it is used for the
tiles of the diagonal alone. From the last row of tiles to the first, with L = R^T:

    L_kk = R_kk^T,   L_kj = R_kk^-1 A_kj,   A_ij <- A_ij - L_ki^T L_kj,   j <= i < k

L takes the place of A tile by tile, so that one matrix is held in memory.
"""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

from sparse_jax.solvers.blocks import matmul, square


def reverse_cholesky(
    matrix: Float[Array, "P P"], tile: int
) -> tuple[Float[Array, "P P"], Bool[Array, ""]]:
    """Factors A = R R^T with R upper triangular.

    Args:
      matrix: the lower triangle of A, zeros above it.
      tile: rows and columns of a tile; divides P.

    Returns:
      (R^T, whether A is positive definite); where it is not, R^T is meaningless.

    Example:
      >>> rt, positive = reverse_cholesky(jnp.array([[5.0, 0.0], [2.0, 1.0]]), 1)
      >>> rt.tolist(), bool(positive)
      ([[1.0, 0.0], [2.0, 1.0]], True)
    """
    n_tiles = len(matrix) // tile

    def get(a_PP, i, j):
        return square(a_PP, (i * tile, j * tile), tile)

    def put(a_PP, i, j, a_TT):
        return lax.dynamic_update_slice(
            a_PP, a_TT, (i * tile, j * tile), allow_negative_indices=False
        )

    def eliminate(step, carry):
        a_PP, positive = carry
        k = n_tiles - 1 - step
        l_kk, inverse_kk = _factor_tile(get(a_PP, k, k))
        positive &= jnp.isfinite(jnp.diagonal(l_kk)).all()

        def solve(j, a_PP):
            return put(a_PP, k, j, matmul(inverse_kk, get(a_PP, k, j)))

        def update_row(i, a_PP):
            # A transpose that is not fused with its slice is several times as fast.
            l_ik = lax.optimization_barrier(get(a_PP, k, i)).T

            def update(j, a_PP):
                a_ij = get(a_PP, i, j) - matmul(l_ik, get(a_PP, k, j))
                return put(a_PP, i, j, a_ij)

            return lax.fori_loop(0, i + 1, update, a_PP)

        a_PP = lax.fori_loop(0, k, solve, put(a_PP, k, k, l_kk))
        return lax.fori_loop(0, k, update_row, a_PP), positive

    return lax.fori_loop(0, n_tiles, eliminate, (matrix, jnp.bool_(True)))


def _factor_tile(a_TT):
    """Factors a tile by LAPACK; returns R^T and R^-1."""
    # R is the Cholesky factor of A with rows and columns in reverse order; so is a
    # triangle's reversed transpose, which is a lower triangle again.
    flipped_TT = lax.linalg.cholesky(a_TT[::-1, ::-1].T, symmetrize_input=False)
    inverse_TT = invert_lower(flipped_TT)
    return flipped_TT[::-1, ::-1].T, inverse_TT[::-1, ::-1]


def invert_lower(triangle: Float[Array, "*lead T T"]) -> Float[Array, "*lead T T"]:
    """Inverts lower triangular matrices, with zeros above the diagonal."""
    eye = jnp.broadcast_to(jnp.eye(triangle.shape[-1]), triangle.shape)
    inverse = lax.linalg.triangular_solve(triangle, eye, left_side=True, lower=True)
    return jnp.tril(inverse)
