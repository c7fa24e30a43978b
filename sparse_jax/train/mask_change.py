"""What a draw of masks has changed: numbers on devices, and rows of metrics."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

Change = dict[str, dict[str, Any]]
"""path -> what a draw has changed, per layer; see `mask_change`."""


def mask_change(
    weights: Float[Array, "*layers in out"],
    old: Bool[Array, "*layers in out"],
    new: Bool[Array, "*layers in out"],
) -> dict[str, Float[Array, "*layers"]]:
    """What a draw has changed in one matrix.

    Args:
      weights: kernels, the pruned ones included.
      old: masks before the draw.
      new: after it.

    Returns:
      `flips`, the share of the mask's entries that changed; `decayed`, the share of the
      pruned weights that are smaller than a hundredth of the kept ones' root mean
      square; `kept_norm`, the 2-norm of the kept weights.
    """
    size = weights.shape[-2] * weights.shape[-1]

    def total(x):
        return jnp.sum(x, axis=(-2, -1), dtype=jnp.float32)

    kept = total(new)
    norm = jnp.sqrt(total(jnp.where(new, weights, 0) ** 2))
    small = norm / jnp.sqrt(jnp.maximum(kept, 1)) / 100
    gone = ~new & (jnp.abs(weights) < small[..., None, None])
    return {
        "flips": total(old != new) / size,
        "decayed": total(gone) / jnp.maximum(size - kept, 1),
        "kept_norm": norm,
    }


def summary(change: Change) -> dict[str, float]:
    """What a refresh has changed, as numbers for a row of metrics.

    `flip_rate` and `decayed_share` are means over all matrices, weighted alike;
    `kept_norm` is of all kept weights; `flip_rate/layer_i` are the layers' means.
    """
    found = {name: [] for name in ("flips", "decayed", "kept_norm")}
    for matrix in change.values():
        for name, values in found.items():
            values.append(np.atleast_1d(np.asarray(matrix[name], np.float64)))
    flips = np.mean(found["flips"], axis=0)
    layers = {f"flip_rate/layer_{i}": float(f) for i, f in enumerate(flips)}
    return {
        "flip_rate": float(flips.mean()),
        "decayed_share": float(np.mean(found["decayed"])),
        "kept_norm": float(np.sqrt(np.sum(np.square(found["kept_norm"])))),
    } | layers
