"""The compiled part of scoring: log-probabilities of chosen tokens in chosen places."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from sparse_jax import models
from sparse_jax.models import Compute, LlamaConfig
from sparse_jax.types import Params


@functools.partial(jax.jit, static_argnames=("config", "compute", "piece"))
def token_logprobs(
    params: Params,
    tokens_BT: Int[Array | np.ndarray, "B T"],
    targets_BW: Int[Array | np.ndarray, "B W"],
    lasts_BA: Int[Array | np.ndarray, "B A"],
    starts_B: Int[Array | np.ndarray, " B"],
    ends_B: Int[Array | np.ndarray, " B"],
    pieces: Int[Array | np.ndarray, ""],
    *,
    config: LlamaConfig,
    compute: Compute,
    piece: int,
) -> tuple[
    Float[Array, "B W"], Bool[Array, "B W"], Float[Array, "B A"], Bool[Array, "B A"]
]:
    """Log-probability of each target, and whether it is the likeliest token.

    Logits are made for the places that are asked for alone, `piece` columns at a time,
    so that a long context costs none.

    Args:
      params: float32 parameters.
      tokens_BT: what is read.
      targets_BW: the target of column w follows token starts + w.
      lasts_BA: targets that all follow token ends.
      starts_B: place of the first column of each row.
      ends_B: place of each row's last token.
      pieces: how many pieces of columns hold targets; the others stay 0 and False.
      config: architecture.
      compute: dtype and scan options.
      piece: columns whose logits exist at one time; divides W.

    Returns:
      Both of the columns, and both of the last targets.
    """
    x_BTD = models.hidden(params, jnp.asarray(tokens_BT), config, compute)
    head_DV = models.gather_head(models.head(params, x_BTD.dtype))
    targets_BW, starts_B1 = jnp.asarray(targets_BW), jnp.asarray(starts_B)[:, None]

    def read(number: Array, found: Any) -> Any:
        first = number * piece
        places_BC = starts_B1 + first + jnp.arange(piece)
        part = _look(
            x_BTD,
            head_DV,
            jnp.minimum(places_BC, x_BTD.shape[1] - 1),
            jax.lax.dynamic_slice_in_dim(targets_BW, first, piece, axis=1),
        )
        return tuple(
            jax.lax.dynamic_update_slice_in_dim(whole, new, first, axis=1)
            for whole, new in zip(found, part, strict=True)
        )

    empty = jnp.zeros(targets_BW.shape, jnp.float32), jnp.zeros(targets_BW.shape, bool)
    shared = jax.lax.fori_loop(0, pieces, read, empty)
    last = _look(x_BTD, head_DV, jnp.asarray(ends_B)[:, None], jnp.asarray(lasts_BA))
    return *shared, *last


def _look(
    x_BTD: Array, head_DV: Array, places_BC: Array, targets_BA: Array
) -> tuple[Array, Array]:
    """A target for each of C places, or A targets for the only place of a row."""
    x_BCD = jnp.take_along_axis(x_BTD, places_BC[:, :, None], axis=1)
    logits_BCV = jnp.einsum(
        "bcd,dv->bcv", x_BCD, head_DV, preferred_element_type=jnp.float32
    )
    if places_BC.shape[1] == 1:
        gold_BA = jnp.take_along_axis(logits_BCV[:, 0], targets_BA, axis=-1)
    else:
        gold_BA = jnp.take_along_axis(logits_BCV, targets_BA[:, :, None], axis=-1)
        gold_BA = gold_BA[:, :, 0]
    total_BC = jax.nn.logsumexp(logits_BCV, axis=-1)
    return gold_BA - total_BC, jnp.argmax(logits_BCV, axis=-1) == targets_BA
