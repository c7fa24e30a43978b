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

from sparse_jax.types import InputError

_LOG = logging.getLogger(__name__)
_LARGEST_DAMPING = 1e6


class Factor(NamedTuple):
    """Damped H in factored form, padded to P columns, a multiple of the block size.

    Attributes:
      rt: R^T, lower triangular [M, P, P]; the identity in the padding.
      u: diagonal blocks of U [M, blocks, block, block].
      dead: inputs that are always zero [M, P].
      damping: damping used for each matrix, a host array [M].
    """

    rt: Float[Array, "M P P"]
    u: Float[Array, "M blocks block block"]
    dead: Bool[Array, "M P"]
    damping: np.ndarray


def accumulate(
    hessian: Float[Array, "in in"],
    n_before: Float[Array, ""] | float,
    inputs: Float[Array, "B T in"],
) -> Float[Array, "in in"]:
    """Adds a batch of sequences to a running Hessian, in float32.

        H <- H n / (n + b) + 2 / (n + b) X^T X

    with n sequences before and b sequences in the batch, so that H = (2/n) X^T X after
    any split into batches (n counts sequences, not tokens).

    Args:
      hessian: H so far; zeros at the start.
      n_before: sequences in it.
      inputs: the activations that enter the linear.

    Example:
      >>> h = accumulate(jnp.zeros((1, 1)), 0.0, jnp.full((2, 3, 1), 2.0))
      >>> float(h[0, 0])
      24.0
    """
    n = n_before + inputs.shape[0]
    x_TI = inputs.reshape(-1, inputs.shape[-1]).astype(jnp.float32)
    gram_II = jnp.matmul(x_TI.T, x_TI, precision=lax.Precision.HIGHEST)
    return hessian * (n_before / n) + (2.0 / n) * gram_II


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
        rt, u, dead, positive = _factorize(hessian, damping_M, block)
        failed = ~np.asarray(positive)
        if not failed.any():
            return Factor(rt, u, dead, damping_M)
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
    n_blocks = -(-n_in // block)
    pad = n_blocks * block - n_in

    def factor_one(problem):
        hessian_II, damping = problem
        diagonal_I = jnp.diagonal(hessian_II)
        dead_I = diagonal_I == 0
        diagonal_I = jnp.where(dead_I, 1.0, diagonal_I)
        diagonal_I = diagonal_I + damping * jnp.mean(diagonal_I)
        damped_II = jnp.fill_diagonal(hessian_II, diagonal_I, inplace=False)
        # H = R R^T with R upper is the Cholesky factorisation of the reversed matrix.
        lower_II = lax.linalg.cholesky(damped_II[::-1, ::-1], symmetrize_input=False)
        r_PP = jnp.pad(lower_II[::-1, ::-1], (0, pad))
        r_PP = r_PP + jnp.diag((jnp.arange(n_in + pad) >= n_in).astype(r_PP.dtype))
        start = jnp.arange(n_blocks) * block
        r_NBB = jax.vmap(lambda i: lax.dynamic_slice(r_PP, (i, i), (block, block)))(
            start
        )
        eye_NBB = jnp.broadcast_to(jnp.eye(block), r_NBB.shape)
        u_NBB = lax.linalg.triangular_solve(r_NBB, eye_NBB, left_side=True, lower=False)
        positive = jnp.isfinite(lower_II).all()
        return r_PP.T, jnp.triu(u_NBB), jnp.pad(dead_I, (0, pad)), positive

    return lax.map(factor_one, (hessian.reshape(-1, n_in, n_in), damping_M))
