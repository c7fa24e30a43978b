"""How large the inputs of a block's matrices are, on the calibration text."""

from collections.abc import Iterable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from sparse_jax.models import INPUTS, LlamaConfig, block
from sparse_jax.types import InputError, Params


class Ranges(NamedTuple):
    """Of the inputs of a tap.

    Attributes:
      largest: max|X_j|.
      mean: mean|X_j|.
    """

    largest: Float[Array, " in"]
    mean: Float[Array, " in"]


def input_ranges(
    layer_params: Params,
    batches: Iterable[Float[Array, "_ T D"]],
    config: LlamaConfig,
    taps: tuple[str, ...] = tuple(INPUTS),
    samples: int | None = None,
) -> dict[str, Ranges]:
    """The ranges of a block's taps, over batches of the block's inputs.

    Args:
      layer_params: `params["layers"]` at one layer.
      batches: outputs of the block before, at least one batch.
      config: architecture.
      taps: which inputs, of `models.INPUTS`.
      samples: how many sequences count, see `Activations.samples`; None = all.

    Raises:
      InputError: a range is infinite or NaN.
    """
    total, n_before, n_tokens = {}, 0, 0
    for x_BTD in batches:
        count = x_BTD.shape[0]
        if samples is not None:
            count = min(count, samples - n_before)
        found = _measure(layer_params, x_BTD, np.int32(count), config, taps)
        total = _join(total, found) if total else found
        n_before += count
        n_tokens += count * x_BTD.shape[1]
    ranges = {
        tap: Ranges(largest, added / n_tokens)
        for tap, (largest, added) in total.items()
    }
    for tap, (largest, _) in ranges.items():
        if not np.isfinite(np.asarray(largest)).all():
            names = " and ".join(f"layers/{name}/kernel" for name in INPUTS[tap])
            raise InputError(
                f"the inputs of {names} are NaN or infinite on the calibration text, "
                "so that they have no range; check the weights and the text"
            )
    return ranges


def static_scale(ranges: Ranges) -> float:
    """max|x| / 127 over all inputs of a tap; 1 where all are zero."""
    return float(ranges.largest.max()) / 127 or 1.0


@partial(jax.jit, static_argnames=("config", "taps"))
def _measure(layer_params, x_BTD, count, config, taps):
    _, found = block(layer_params, x_BTD, config)
    counts_B = jnp.arange(x_BTD.shape[0]) < count
    sizes = {
        tap: jnp.where(
            counts_B[:, None, None], jnp.abs(found[tap].astype(jnp.float32)), 0
        )
        for tap in taps
    }
    return {tap: (x.max((0, 1)), x.sum((0, 1))) for tap, x in sizes.items()}


@jax.jit
def _join(total, found):
    return {
        tap: (jnp.maximum(total[tap][0], found[tap][0]), total[tap][1] + found[tap][1])
        for tap in found
    }
