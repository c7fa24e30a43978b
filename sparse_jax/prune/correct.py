"""What stands beside a rounded matrix: outliers, and a low-rank term for the rest."""

from dataclasses import replace
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from sparse_jax import quant
from sparse_jax.prune.quantize_config import QuantizeConfig
from sparse_jax.prune.solve_rounded import Rounded
from sparse_jax.sparsity.masks import to_kernel


class Corrected(NamedTuple):
    """A matrix and what stands beside it.

    Attributes:
      result: with the weights that all of it computes together.
      weights: the matrix alone, on its grid.
      leaves: low-rank factors and outliers, by the last part of their leaf path.
    """

    result: Rounded
    weights: Float[Array, "out in"]
    leaves: dict[str, Array]


def correct(
    result: Rounded, hessian: Float[Array, "in in"] | None, config: QuantizeConfig
) -> Corrected:
    """Separates the outliers, and finds the low-rank term, if the config has them.

    A matrix that stays in floats has none of either where others of its kind have
    some: their leaves are stacked, so it gets zeros.

    Args:
      result: a solved matrix [out, in].
      hessian: of its inputs.
      config: what was asked for.
    """
    solution, leaves = result.solution, {}
    weights = solution.weights
    n_out, n_in = weights.shape
    if config.outliers is not None:
        count = config.outliers.count(n_in, n_out)
        flags = result.outliers
        if flags is None:
            index, values = jnp.arange(count, dtype=jnp.int32), jnp.zeros(count)
        else:
            index, values, weights = quant.take_outliers(weights, flags, count)
        leaves |= {"outlier_index": index, "outlier_value": values}
    if config.low_rank is not None:
        assert hessian is not None  # `check` asks for it
        lost = to_kernel(solution.problem.weights - solution.weights)
        size = jnp.sqrt(jnp.diagonal(hessian))
        rank = config.low_rank.size(n_in, n_out)
        x, s = quant.low_rank(lost, size, rank, config.low_rank.grid)
        leaves |= {"slorb_x": x, "slorb_s": s}
        together = solution.weights + to_kernel(x @ s)
        result = result._replace(solution=replace(solution, weights=together))
    return Corrected(result, weights, leaves)
