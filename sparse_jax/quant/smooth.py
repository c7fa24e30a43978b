"""Scales that move between a matrix and what computes its inputs.

    y = (X / s) (s W)    for any s > 0, one for every input

so the model in floats stays the same, and what is rounded does not.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from sparse_jax.quant.fit import fit, search
from sparse_jax.quant.grid import GridConfig, round_to_grid

_LEAST = 1e-4  # of the largest range: inputs that are almost dead
_REACH = 1e4  # the largest scale over the smallest


def smooth_scales(
    input_range: Float[Array, " in"], weight_range: Float[Array, " in"], alpha: float
) -> Float[Array, " in"]:
    """The scales that share the range of the inputs with the weights.

        s_j = max|X_j|^alpha / max|W_j|^(1 - alpha)

    Source: SmoothQuant, https://arxiv.org/abs/2211.10438

    Args:
      input_range: max|X_j| over the tokens; those below 1e-4 of the largest are raised
        to that, so that inputs that calibration did not see stay as they are.
      weight_range: max|W_j| over the outputs of all matrices that read the input,
        raised alike.
      alpha: the share, 0 to 1.

    Example:
      >>> smooth_scales(jnp.array([16.0, 1.0]), jnp.array([1.0, 4.0]), 0.5).tolist()
      [4.0, 0.5]
    """
    inputs, weights = (_floored(x) for x in (input_range, weight_range))
    return _bounded(inputs**alpha / weights ** (1 - alpha))


def _floored(values: Array) -> Array:
    largest = jnp.max(values)
    return jnp.where(largest > 0, jnp.maximum(values, _LEAST * largest), 1.0)


def _bounded(scales: Array) -> Array:
    largest = jnp.max(scales)
    return jnp.maximum(scales, largest / _REACH)


@functools.partial(jax.jit, static_argnames=("config", "clip", "points"))
def awq_scales(
    weights: list[Float[Array, "out in"]],
    masks: list[Array | None],
    input_mean: Float[Array, " in"],
    hessian: Float[Array, "in in"],
    config: GridConfig,
    *,
    clip: bool = False,
    points: int = 20,
) -> Float[Array, " in"]:
    """The scales among powers of the inputs' size that lose least when rounding.

        s_j = mean|X_j|^a,   a in [0, 1] with the least  tr((W' - W) H (W' - W)^T)

    summed over the matrices that read the inputs, W' = round(W s) / s; then divided by
    sqrt(max s min s). a = 0 changes nothing.

    Source: AWQ, https://arxiv.org/abs/2306.00978, which searches by the output error of
    its calibration tokens: H holds them all.

    Args:
      weights: of the matrices.
      masks: what of them is kept; None = all.
      input_mean: mean|X_j| over the tokens; small ones are raised to 1e-4 of the
        largest.
      hessian: of the inputs.
      config: the grid.
      clip: whether the grid is clipped, see `search`.
      points: exponents that are tried.
    """
    mean = _floored(input_mean)

    def scales_of(exponent: Array) -> Array:
        scales = mean**exponent
        return _bounded(scales / jnp.sqrt(jnp.max(scales) * jnp.min(scales)))

    def loss_of(exponent: Array) -> Array:
        scales = scales_of(exponent)
        importance = jnp.diagonal(hessian) / scales**2
        loss = jnp.float32(0)
        for w_OI, mask in zip(weights, masks, strict=True):
            scaled = w_OI * scales
            if clip:
                grid = search(scaled, config, mask, importance)
            else:
                grid = fit(scaled, config, mask)
            rounded = round_to_grid(scaled, grid) / scales
            lost = (
                rounded - w_OI if mask is None else jnp.where(mask, rounded - w_OI, 0)
            )
            product = jnp.matmul(lost, hessian, precision=jax.lax.Precision.HIGHEST)
            loss += jnp.sum(product * lost)
        return loss

    exponents = jnp.linspace(0.0, 1.0, points)
    losses = jax.lax.map(loss_of, exponents)
    return scales_of(exponents[jnp.argmin(losses)])
