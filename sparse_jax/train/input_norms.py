"""Mean squares of the inputs of a model's matrices, for Wanda's score."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from sparse_jax import models
from sparse_jax.models import INPUTS
from sparse_jax.train.step import effective
from sparse_jax.tree import leaf_paths
from sparse_jax.types import Batch, InputError, Params, State

Norms = dict[str, Float[Array, "L _"]]
"""path of a matrix -> mean squares of its inputs, [L, in]."""

_PREFIX, _LEAF = "layers/", "/kernel"


def zero_norms(params: Params, paths: Sequence[str]) -> Norms:
    """Zeros for the matrices at `paths`.

    Raises:
      InputError: a path is not one of a decoder block's matrices.
    """
    leaves = leaf_paths(params)
    known = {_kernel(name) for names in INPUTS.values() for name in names}
    for path in paths:
        if path not in known:
            raise InputError(
                f"adaptive.score: 'wanda' has no inputs of {path}; choose another "
                "score, or leave this matrix dense"
            )
    return {path: jnp.zeros(leaves[path].shape[:-1]) for path in paths}


def input_norms(state: State, batch: Batch, adaptive: Any) -> Norms:
    """Mean squares over the tokens of a batch, as the masked model sees them.

    Args:
      state: of training; its masks are applied.
      batch: [B, T] arrays.
      adaptive: the model, its compute dtype, the matrices; see `train.Adaptive`.
    """
    compute, model = adaptive.compute, adaptive.model
    options = {"mode": adaptive.config.mode, "quantize": adaptive.quantize}
    params = effective(state.params, state.masks, **options)
    x_BTD = models.embed(params, jnp.asarray(batch.tokens), compute)

    def block(x_BTD, layer_params):
        y_BTD, taps = models.block(
            layer_params, x_BTD, model, positions=jnp.asarray(batch.positions)
        )
        return y_BTD, {
            tap: jnp.mean(jnp.square(taps[tap].astype(jnp.float32)), axis=(0, 1))
            for tap in INPUTS
        }

    _, squares = jax.lax.scan(block, x_BTD, params["layers"])
    taps = {_kernel(name): tap for tap, names in INPUTS.items() for name in names}
    return {path: squares[taps[path]] for path, _ in adaptive.patterns}


def _kernel(name: str) -> str:
    return f"{_PREFIX}{name}{_LEAF}"
