"""Importance of weights: what a pattern ranks. All are [..., out, in], higher is kept.

Only the order inside one matrix matters. `Group` and `Block` patterns add up the scores
of a unit's members, so square them first to rank units by energy.
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

Matrix = Float[Array | np.ndarray, "*lead out in"]


def magnitude(weights: Matrix) -> Float[Array, "*lead out in"]:
    """Size of the weight, |w|.

    Example:
      >>> magnitude(jnp.array([[-2.0, 1.0]])).tolist()
      [[2.0, 1.0]]
    """
    return jnp.abs(jnp.asarray(weights, jnp.float32))


def wanda(
    weights: Matrix, hessian_diagonal: Float[Array | np.ndarray, "*lead in"]
) -> Float[Array, "*lead out in"]:
    """Size of the weight times the norm of its input, |w_ij| sqrt(H_jj).

    Reference: Sun et al. 2023, "A Simple and Effective Pruning Approach for Large
    Language Models", arXiv 2306.11695.

    Args:
      weights: [..., out, in].
      hessian_diagonal: [..., in], proportional to the inputs' squared norms.

    Example:
      >>> wanda(jnp.array([[1.0, 1.0]]), jnp.array([4.0, 1.0])).tolist()
      [[2.0, 1.0]]
    """
    norms = jnp.sqrt(jnp.asarray(hessian_diagonal, jnp.float32))
    return magnitude(weights) * norms[..., None, :]


def sparsegpt(
    weights: Matrix, factor_diagonal: Float[Array | np.ndarray, "*lead in"]
) -> Float[Array, "*lead out in"]:
    """Output error of removing one weight after those before it, (w_ij R_jj)^2.

    R is upper triangular with H = R R^T for the damped H, so 1 / R_jj is the diagonal
    of the upper Cholesky factor U of the inverse of H, and the score is w^2 / U_jj^2.

    Reference: Frantar & Alistarh 2023, "SparseGPT", arXiv 2301.00774.

    Args:
      weights: [..., out, in].
      factor_diagonal: [..., in], the diagonal of R.
    """
    diagonal = jnp.asarray(factor_diagonal, jnp.float32)
    return (magnitude(weights) * diagonal[..., None, :]) ** 2


def fisher(
    weights: Matrix, squared_gradients: Float[Array | np.ndarray, "*lead out in"]
) -> Float[Array, "*lead out in"]:
    """Increase of the loss when the weight goes, w^2 F / 2 without the half.

    F is the diagonal of the empirical Fisher information, such as Adam's second moment.

    Reference: LeCun et al. 1989, "Optimal Brain Damage"; Theis et al. 2018,
    arXiv 1801.05787.

    Args:
      weights: [..., out, in].
      squared_gradients: [..., out, in], mean squares of the loss's gradient.

    Example:
      >>> fisher(jnp.array([[2.0, 1.0]]), jnp.array([[1.0, 9.0]])).tolist()
      [[4.0, 9.0]]
    """
    return magnitude(weights) ** 2 * jnp.asarray(squared_gradients, jnp.float32)
