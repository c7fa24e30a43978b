"""A few weights kept beside a rounded matrix, which then needs a smaller range."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from sparse_jax.quant.grid import Grid, quantizer

OUTLIER_BITS = 16 + 32
"""Of an outlier: a float16 and the index of its place."""


@functools.partial(jax.jit, static_argnames="count")
def choose_outliers(
    weights: Float[Array, "out in"],
    count: int,
    inverse_diagonal: Float[Array, " in"] | None = None,
) -> Bool[Array, "out in"]:
    """The weights that cost most where they are not kept.

        s_ij = w_ij^2 / [H^-1]_jj

    Source: SqueezeLLM's dense-and-sparse, https://arxiv.org/abs/2306.07629, with the
    Hessian of the matrix's own outputs in place of the loss's.

    Args:
      weights: pruned ones at zero; they come last.
      count: how many; of equal ones the first.
      inverse_diagonal: [H^-1]_jj; None ranks by magnitude.

    Returns:
      True = kept exactly.

    Example:
      >>> choose_outliers(jnp.array([[1.0, -3.0, 2.0]]), 1).tolist()
      [[False, True, False]]
    """
    scores = weights.astype(jnp.float32) ** 2
    if inverse_diagonal is not None:
        scores /= inverse_diagonal
    _, places = jax.lax.top_k(scores.reshape(-1), count)
    flags = jnp.zeros(weights.size, bool).at[places].set(True)
    return flags.reshape(weights.shape)


def quantizer_with_outliers(
    grid: Grid, outliers: Bool[Array, "out in"]
) -> jax.tree_util.Partial:
    """As `quant.quantizer`; outliers are rounded to float16 alone."""
    return jax.tree_util.Partial(_round_column, quantizer(grid), outliers)


def _round_column(
    rounded, outliers: Bool[Array, "out in"], values_O: Float[Array, " out"], index
) -> Float[Array, " out"]:
    kept_O1 = jax.lax.dynamic_slice_in_dim(outliers, index, 1, axis=-1)
    exact_O = values_O.astype(jnp.float16).astype(jnp.float32)
    return jnp.where(kept_O1[:, 0], exact_O, rounded(values_O, index))


@functools.partial(jax.jit, static_argnames="count")
def take_outliers(
    weights: Float[Array, "out in"], outliers: Bool[Array, "out in"], count: int
) -> tuple[Int[Array, " n"], Float[Array, " n"], Float[Array, "out in"]]:
    """Splits a matrix into outliers and the rest.

    Returns:
      (index, value, rest): flat places in [out, in], increasing, int32; what is there;
      and the matrix with zeros there.
    """
    index = jnp.nonzero(outliers.reshape(-1), size=count)[0].astype(jnp.int32)
    values = weights.reshape(-1)[index]
    return index, values, jnp.where(outliers, 0, weights)
