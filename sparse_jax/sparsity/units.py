"""Units of neighbouring weights: their scores, and the selection among them.

The compiled part of `patterns`: counts come in as integers from the host, so that one
compilation serves all sparsities.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from sparse_jax import mesh
from sparse_jax.sparsity.select import keep_highest, keep_per_group

Matrix = Float[Array | np.ndarray, "*lead out in"]
Mask = Bool[Array | np.ndarray, "*lead out in"]


def group_units(
    values: Float[Array, "*lead out in"], unit: tuple[int, int]
) -> Float[Array, "*lead out_units in_units"]:
    """Sums the members of every unit of (out, in) extent `unit`."""
    *lead, n_out, n_in = values.shape
    units = values.reshape(*lead, n_out // unit[0], unit[0], n_in // unit[1], unit[1])
    return units.sum((-3, -1))


def spread_units(
    kept: Bool[Array, "*lead out_units in_units"], unit: tuple[int, int]
) -> Bool[Array, "*lead out in"]:
    """Gives every member of a unit the unit's value; the inverse of a grouping."""
    return jnp.repeat(jnp.repeat(kept, unit[0], -2), unit[1], -1)


def rank_units(
    scores: Matrix, prior: Mask, unit: tuple[int, int]
) -> Float[Array, "*lead out_units in_units"]:
    """Scores units by the sum over the members still kept; dead units rank lowest."""
    scores = jnp.where(prior, jnp.asarray(scores, jnp.float32), 0)
    if unit == (1, 1):
        return jnp.where(prior, scores, -jnp.inf)
    alive = group_units(jnp.asarray(prior, jnp.float32), unit) > 0
    return jnp.where(alive, group_units(scores, unit), -jnp.inf)


@partial(jax.jit, static_argnames="unit")
def dead_per_row(prior: Mask, unit: tuple[int, int]) -> Int[Array, "*lead out_units"]:
    """Counts the units in each row of units that hold no kept weight."""
    return jnp.sum(group_units(jnp.asarray(prior, jnp.float32), unit) == 0, -1)


def units_pruned(mask: Mask, unit: tuple[int, int]) -> Int[np.ndarray, "M"]:
    """Counts the units of each of M matrices that hold no kept weight, on the host."""
    dead = mesh.to_host(dead_per_row(mask, unit)).astype(np.int64)
    return dead.reshape(-1, dead.shape[-1]).sum(-1)


@partial(jax.jit, static_argnames="unit")
def project_units(
    scores: Matrix,
    prior: Mask,
    counts: Int[Array | np.ndarray, "M *out_units"],
    unit: tuple[int, int],
) -> Bool[Array, "*lead out in"]:
    """Drops the lowest units of M matrices; `counts` is [M], or [M, out] per row."""
    matrices = (-1, *scores.shape[-2:])

    def project_one(problem):
        scores_OI, prior_OI, count = problem
        units = rank_units(scores_OI, prior_OI, unit)
        keep = keep_highest if count.ndim == 0 else jax.vmap(keep_highest)
        return spread_units(keep(units, count), unit) & prior_OI

    problems = (scores.reshape(matrices), prior.reshape(matrices), counts)
    return lax.map(project_one, problems).reshape(scores.shape)


@partial(jax.jit, static_argnames="m")
def project_nm(
    scores: Matrix,
    prior: Mask,
    n: int | Int[Array, ""],
    m: int,
) -> Bool[Array, "*lead out in"]:
    """Keeps n of every m along the inputs; `n` is traced, `m` is not."""
    ranked = rank_units(scores, prior, (1, 1))
    groups = ranked.reshape(*scores.shape[:-1], -1, m)
    return keep_per_group(groups, n).reshape(scores.shape) & prior
