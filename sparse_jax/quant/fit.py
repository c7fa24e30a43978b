"""Fitting a grid to a matrix: to its range, or to the least weighted error."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from sparse_jax.quant.grid import Grid, GridConfig, round_to_grid

_RATIOS = np.linspace(1.0, 0.4, 25)
"""Ranges that `search` tries, over the whole range."""


def fit(
    weights: Float[Array, "..."],
    config: GridConfig,
    mask: Bool[Array, "..."] | None = None,
    *,
    axis: int = -1,
    ratio: Float[Array, "..."] | float = 1.0,
) -> Grid:
    """The grid that reaches from the smallest to the largest weight of each group.

        symmetric   scale = max|w| / (2^(b-1) - 1)
        asymmetric  scale = (max w - min w) / (2^b - 1),  zero = round(-min w / scale)

    with max and min taken with 0. A group of zeros has scale 0.

    Args:
      weights: [*L, out, in], or [*L, in, out] with axis -2.
      config: what the codes are.
      mask: True = kept; pruned weights count as zero.
      axis: where the inputs are.
      ratio: shrinks the ranges, which clips what is outside.

    Example:
      >>> fit(jnp.array([[0.7, -0.2]]), GridConfig(bits=4, group=0)).scales.dtype
      dtype('float32')
    """
    kept = weights.astype(jnp.float32)
    kept = kept if mask is None else jnp.where(mask, kept, 0)
    axis = kept.ndim + axis
    high = _over_groups(jnp.max, kept, config, axis) * ratio
    low = _over_groups(jnp.min, kept, config, axis) * ratio
    first, last = config.limits
    if config.symmetric:
        return Grid(
            config=config, scales=_stored(jnp.maximum(high, -low) / last, config)
        )
    high, low = jnp.maximum(high, 0), jnp.minimum(low, 0)
    scales = _stored((high - low) / last, config)
    zeros = jnp.round(-low / jnp.where(scales > 0, scales, 1.0))
    return Grid(config=config, scales=scales, zeros=jnp.clip(zeros, first, last))


@functools.partial(jax.jit, static_argnames=("config", "axis"))
def search(
    weights: Float[Array, "..."],
    config: GridConfig,
    mask: Bool[Array, "..."] | None = None,
    importance: Float[Array, "..."] | None = None,
    *,
    axis: int = -1,
) -> Grid:
    """The grid whose clipped range loses least, group by group.

        minimise over the range's ratio in [0.4, 1]   sum_j h_j (w_j - round(w_j))^2

    Args:
      weights: as for `fit`.
      config: what the codes are.
      mask: True = kept.
      importance: h of every input, the diagonal of its Hessian, say, [*L, in]; None
        counts all alike.
      axis: where the inputs are.

    Example:
      >>> w = jnp.array([[1.0, 0.11, 0.12, 0.1, -0.12, 0.1, -0.11, 0.1]])
      >>> config = GridConfig(bits=2, group=0)
      >>> errors = [jnp.sum((round_to_grid(w, grid) - w) ** 2)
      ...           for grid in (search(w, config), fit(w, config))]
      >>> bool(errors[0] <= errors[1])
      True
    """
    kept = weights.astype(jnp.float32)
    kept = kept if mask is None else jnp.where(mask, kept, 0)
    across = jnp.float32(1.0)
    if importance is not None:
        across = jnp.expand_dims(importance, -2 if axis == -1 else -1)
    places = kept.ndim + axis

    def loss_of(ratio: Array) -> Array:
        grid = fit(kept, config, axis=axis, ratio=ratio)
        loss = across * (round_to_grid(kept, grid, axis=axis) - kept) ** 2
        return _over_groups(jnp.sum, loss, config, places)

    def better(best, ratio):
        least, chosen = best
        loss = loss_of(ratio)
        closer = loss < least
        return (jnp.where(closer, loss, least), jnp.where(closer, ratio, chosen)), None

    ratios = jnp.asarray(_RATIOS, jnp.float32)
    first = loss_of(ratios[0])
    start = first, jnp.full_like(first, ratios[0])
    (_, chosen), _ = jax.lax.scan(better, start, ratios[1:])
    return fit(kept, config, axis=axis, ratio=chosen)


def _over_groups(reduce, values: Array, config: GridConfig, axis: int) -> Array:
    """Reduces every group of inputs; the last one is padded with zeros."""
    n_in = values.shape[axis]
    n_groups = config.groups(n_in)
    width = config.group or n_in
    pad = [(0, 0)] * values.ndim
    pad[axis] = (0, n_groups * width - n_in)
    shape = (*values.shape[:axis], n_groups, width, *values.shape[axis + 1 :])
    return reduce(jnp.pad(values, pad).reshape(shape), axis=axis + 1)


def _stored(scales: Array, config: GridConfig) -> Array:
    return scales.astype(config.scale_dtype).astype(jnp.float32)
