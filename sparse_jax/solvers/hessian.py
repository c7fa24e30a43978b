"""The layer-wise Hessian H = (2/n) X^T X and its triangular factor.

    H = R R^T, R upper triangular,   U = R^-1,   H^-1 = U^T U

R comes from one Cholesky factorisation of H with rows and columns reversed. U, which
the SparseGPT paper takes from the explicit inverse of H, is needed only in its diagonal
blocks, and those are the inverses of R's diagonal blocks.
"""

import logging
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float

from sparse_jax.solvers.blocks import (
    largest_divisor,
    matmul,
    padded_columns,
    square,
    tile_width,
)
from sparse_jax.solvers.cholesky import invert_lower, reverse_cholesky
from sparse_jax.types import InputError

_LOG = logging.getLogger(__name__)
_LARGEST_DAMPING = 1e6


class Factor(NamedTuple):
    """Damped H in factored form, padded to P columns, a multiple of the block size.

    Attributes:
      rt: R^T, lower triangular [M, P, P]; the identity in the padding.
      ut: diagonal blocks of U^T [M, blocks, block, block].
      dead: inputs that are always zero [M, P].
      damping: damping used for each matrix, a host array [M].
    """

    rt: Float[Array, "M P P"]
    ut: Float[Array, "M blocks block block"]
    dead: Bool[Array, "M P"]
    damping: np.ndarray


def accumulate(
    hessian: Float[Array, "in in"],
    n_before: Float[Array, ""] | float,
    inputs: Float[Array, "B T in"],
    n_added: Float[Array, ""] | float | None = None,
) -> Float[Array, "in in"]:
    """Adds a batch of sequences to a running Hessian, in float32.

        H <- H n / (n + b) + 2 / (n + b) X^T X

    with n sequences before and b sequences in the batch, so that H = (2/n) X^T X after
    any split into batches (n counts sequences, not tokens).

    A large H is brought up to date in its upper triangle alone, tile by tile, which
    needs less time and memory; `symmetrize` completes it after the last batch.

    Args:
      hessian: H so far; zeros at the start.
      n_before: sequences in it.
      inputs: the activations that enter the linear.
      n_added: sequences in the batch, where `inputs` are but a part of it, and H the
        part of H that follows from such parts; None = the batch size of `inputs`.

    Example:
      >>> h = accumulate(jnp.zeros((1, 1)), 0.0, jnp.full((2, 3, 1), 2.0))
      >>> float(h[0, 0])
      24.0
    """
    n = n_before + (inputs.shape[0] if n_added is None else n_added)
    x_TI = inputs.reshape(-1, inputs.shape[-1]).astype(jnp.float32)
    tile = _tile(len(hessian))

    def add(start, hessian):
        left_TP, right_TP = (
            lax.dynamic_slice_in_dim(x_TI, first, tile, 1) for first in start
        )
        tile_PP = square(hessian, start, tile) * (n_before / n)
        tile_PP += (2.0 / n) * matmul(left_TP.T, right_TP)
        return lax.dynamic_update_slice(hessian, tile_PP, start)

    return _over_tiles(add, hessian, with_diagonal=True)


def symmetrize(hessian: Float[Array, "in in"]) -> Float[Array, "in in"]:
    """Copies the upper triangle that `accumulate` has filled to the lower one."""

    def mirror(start, hessian):
        above_PP = square(hessian, start, _tile(len(hessian)))
        # A transpose that is fused with its slice is many times slower.
        below_PP = lax.optimization_barrier(above_PP).T
        return lax.dynamic_update_slice(hessian, below_PP, start[::-1])

    return _over_tiles(mirror, hessian, with_diagonal=False)


def _over_tiles(function, hessian, *, with_diagonal):
    """Applies a function of a tile's corner to all tiles of the upper triangle."""
    corners = np.arange(0, len(hessian), _tile(len(hessian)))
    starts = [(i, j) for i in corners for j in corners if i < j + with_diagonal]
    if not starts:
        return hessian
    starts = jnp.asarray(starts)

    def step(n, hessian):
        return function((starts[n, 0], starts[n, 1]), hessian)

    return lax.fori_loop(0, len(starts), step, hessian)


def _tile(n_in: int) -> int:
    """The widest tile up to 1024 that divides `n_in`; all of it, if that is narrow."""
    widest = largest_divisor(n_in, 1024)
    return widest if widest >= 256 else n_in


def factorize(
    hessian: Float[Array, "*lead in in"], damping: float, block: int, name: str
) -> Factor:
    """Factors the damped H; where that fails, damping is raised tenfold and recorded.

    Dead inputs (H_jj = 0) get H_jj = 1; then `damping * mean(diag H)` is added to the
    diagonal.

    Args:
      hessian: symmetric, with a diagonal >= 0.
      damping: relative damping of the first attempt.
      block: size of the diagonal blocks; the factor is padded to a multiple of it.
      name: what to call these matrices in messages.

    Raises:
      InputError: H is not positive definite with any damping up to 1e6.
    """
    damping_M = np.full(int(np.prod(hessian.shape[:-2])), damping, np.float32)
    while True:
        rt, ut, dead, positive = _factorize(hessian, damping_M, block)
        failed = ~np.asarray(positive)
        if not failed.any():
            return Factor(rt, ut, dead, damping_M)
        raised = np.maximum(damping_M * 10, 1e-6)
        if raised[failed].max() > _LARGEST_DAMPING:
            raise InputError(
                f"{name}: the Hessian is not positive definite even with damping "
                f"{damping_M[failed].max():g}; check the calibration activations"
            )
        damping_M = np.where(failed, raised, damping_M)
        _LOG.warning(
            "%s: the Hessian is not positive definite, damping raised to %g",
            name,
            raised[failed].max(),
        )


@partial(jax.jit, static_argnames="block")
def _factorize(hessian, damping_M, block):
    n_in = hessian.shape[-1]
    n_columns = padded_columns(n_in, block)

    def factor_one(problem):
        hessian_II, damping = problem
        diagonal_I = jnp.diagonal(hessian_II)
        dead_I = diagonal_I == 0
        diagonal_I = jnp.where(dead_I, 1.0, diagonal_I)
        diagonal_I = diagonal_I + damping * jnp.mean(diagonal_I)
        pad = (0, n_columns - n_in)
        lower_PP = jnp.tril(jnp.pad(hessian_II, pad), -1)
        diagonal_P = jnp.pad(diagonal_I, pad, constant_values=1.0)
        lower_PP = jnp.where(jnp.eye(n_columns, dtype=bool), diagonal_P, lower_PP)
        rt_PP, positive = reverse_cholesky(lower_PP, _factor_tile(n_in, block))
        starts = jnp.arange(0, n_columns, block)
        rt_NBB = jax.vmap(lambda start: square(rt_PP, (start, start), block))(starts)
        ut_NBB = invert_lower(rt_NBB)
        return rt_PP, ut_NBB, jnp.pad(dead_I, pad), positive

    return lax.map(factor_one, (hessian.reshape(-1, n_in, n_in), damping_M))


def _factor_tile(n_in: int, block: int) -> int:
    """Tile of the factorisation: a part of the sweep's tile, near 128 columns."""
    tile = tile_width(n_in, block)
    while tile > 128 and tile % 2 == 0:
        tile //= 2
    return tile
