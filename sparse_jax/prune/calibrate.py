"""Calibration: which text a block sees, and the Hessians of the inputs of its matrices.

Matrices that read the same activations share one Hessian: see `INPUTS`.
"""

from collections.abc import Iterable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from sparse_jax.models import LlamaConfig, block
from sparse_jax.solvers import accumulate, symmetrize
from sparse_jax.types import InputError, Params

INPUTS = {
    "attention_in": ("attention/q", "attention/k", "attention/v"),
    "attention_out_in": ("attention/o",),
    "mlp_in": ("mlp/gate", "mlp/up"),
    "mlp_out_in": ("mlp/down",),
}
"""Tap of a block -> the matrices that read it (see `models.TAPS`)."""


def sample_windows(
    stream: Int[np.ndarray, " tokens"], samples: int, length: int, seed: int
) -> Int[np.ndarray, "samples length"]:
    """Draws windows of `length` tokens at random places of a token stream.

    Starts differ as long as the stream has enough of them; windows may overlap.

    Raises:
      InputError: the stream is shorter than one window.

    Example:
      >>> sample_windows(np.arange(100), 2, 3, seed=0).shape
      (2, 3)
    """
    n_starts = len(stream) - length + 1
    if n_starts < 1:
        raise InputError(
            f"calibration text has {len(stream)} tokens, fewer than one sequence of "
            f"{length}; give more text or shorten prune.sample_length"
        )
    rng = np.random.default_rng(seed)
    starts = rng.choice(n_starts, samples, replace=n_starts < samples)
    return np.asarray(stream)[starts[:, None] + np.arange(length)]


def hessians(
    layer_params: Params,
    batches: Iterable[Float[Array, "_ T D"]],
    config: LlamaConfig,
    taps: tuple[str, ...] = tuple(INPUTS),
) -> dict[str, Float[Array, "_ _"]]:
    """H = (2/n) X^T X of a block's taps, over batches of the block's inputs.

    Args:
      layer_params: `params["layers"]` at one layer.
      batches: outputs of the block before, at least one batch.
      config: architecture.
      taps: which inputs, of `INPUTS`.
    """
    widths = {
        "attention_in": config.d_model,
        "attention_out_in": config.n_heads * config.head_width,
        "mlp_in": config.d_model,
        "mlp_out_in": config.d_ff,
    }
    total = {tap: jnp.zeros((widths[tap], widths[tap])) for tap in taps}
    n_before = 0
    for x_BTD in batches:
        total = _accumulate(layer_params, x_BTD, total, float(n_before), config)
        n_before += x_BTD.shape[0]
    return {tap: _symmetrize(total.pop(tap)) for tap in taps}


@partial(jax.jit, static_argnames="config", donate_argnames="total")
def _accumulate(layer_params, x_BTD, total, n_before, config):
    _, taps = block(layer_params, x_BTD, config)
    return {tap: accumulate(h, n_before, taps[tap]) for tap, h in total.items()}


_symmetrize = jax.jit(symmetrize, donate_argnums=0)
