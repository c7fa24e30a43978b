"""Smoothing of a block: scales folded into norms and into the rows of `up`.

    attention_norm -> q, k, v
    mlp_norm       -> gate, up
    up             -> down

Queries, keys and values of grouped heads and all biases stay what they were: the scales
are gone before them, or are those of `up`, whose bias is divided as its outputs are.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from sparse_jax import quant
from sparse_jax.models import INPUTS
from sparse_jax.prune.quantize_config import Awq, QuantizeConfig
from sparse_jax.prune.ranges import Ranges
from sparse_jax.sparsity.masks import to_matrix

SMOOTHED = {
    "attention_in": "layers/attention_norm/scale",
    "mlp_in": "layers/mlp_norm/scale",
    "mlp_out_in": "layers/mlp/up/kernel",
}
"""Tap -> the leaf that takes its scales."""


def smooth(
    leaves: dict[str, Array],
    masks: dict[str, Array],
    hessians: dict[str, Float[Array, "_ _"]],
    ranges: dict[str, Ranges],
    rounded: list[str],
    config: QuantizeConfig,
) -> tuple[dict[str, Array], dict[str, Array], dict[str, Ranges]]:
    """Smooths the taps of a block that rounded matrices read.

    Args:
      leaves: of one layer, by path in the whole model.
      masks: of its matrices.
      hessians: of its taps.
      ranges: of its taps.
      rounded: paths of the matrices to round.
      config: what to do.

    Returns:
      The leaves, which compute the same, the Hessians and the ranges, as they are then.
    """
    leaves, hessians, ranges = dict(leaves), dict(hessians), dict(ranges)
    for tap, target in SMOOTHED.items():
        readers = [f"layers/{name}/kernel" for name in INPUTS[tap]]
        if not any(path in rounded for path in readers):
            continue
        arguments = [leaves[path] for path in readers], [masks.get(p) for p in readers]
        scales = _scales(*arguments, hessians.get(tap), ranges[tap], config)
        for path in readers:
            leaves[path] = leaves[path] * scales[:, None]
        leaves[target] = leaves[target] / scales
        if (bias := target.replace("kernel", "bias")) != target and bias in leaves:
            leaves[bias] = leaves[bias] / scales
        if tap in hessians:
            hessians[tap] = _rescaled(hessians[tap], scales)
        ranges[tap] = Ranges(*(values / scales for values in ranges[tap]))
    return leaves, hessians, ranges


def _scales(kernels, masks, hessian, ranges, config) -> Float[Array, " in"]:
    smooth = config.smooth
    matrices = [to_matrix(kernel) for kernel in kernels]
    if isinstance(smooth, Awq):
        masks = [None if mask is None else to_matrix(mask) for mask in masks]
        options = {"clip": config.clip == "search", "points": smooth.points}
        return quant.awq_scales(
            matrices, masks, ranges.mean, hessian, config.grid, **options
        )
    largest = jnp.stack([jnp.max(jnp.abs(matrix), 0) for matrix in matrices]).max(0)
    return quant.smooth_scales(ranges.largest, largest, smooth.alpha)


@jax.jit
def _rescaled(hessian, scales):
    # Of X / s.
    return hessian / scales / scales[:, None]
