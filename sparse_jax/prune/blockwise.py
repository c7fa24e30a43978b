"""Walks a model block by block; each block sees the new outputs of those before it."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from sparse_jax.models import Compute, LlamaConfig, block, embed
from sparse_jax.types import InputError, Params, Tree

Inputs = list[Float[Array, "_ T D"]]
"""Calibration activations that enter a block, in batches of sequences."""

Action = Callable[[int, Params, Inputs], Params]
"""(index, layer params, inputs) -> new layer params: solve, train, measure ..."""

Progress = Callable[[int, int], None]
"""Called as (blocks done, blocks in all)."""


def walk(
    params: Params,
    tokens: Int[Array | np.ndarray, "samples length"] | None,
    config: LlamaConfig,
    compute: Compute,
    action: Action,
    *,
    batch_size: int = 16,
    progress: Progress | None = None,
) -> Params:
    """Replaces every decoder block by what `action` makes of it, first to last.

    Only one block's new weights are worked on at a time, and the activations kept are
    those that enter it: the calibration tokens embedded, then carried through the NEW
    blocks, so that later blocks see, and can make up for, the errors of earlier ones.

    Args:
      params: the whole model.
      tokens: calibration sequences; None gives every action an empty list of inputs.
      config: architecture.
      compute: the activations' dtype.
      action: called once per block.
      batch_size: sequences per batch of inputs.
      progress: called after every block.

    Returns:
      New params; the given ones are not changed.

    Raises:
      InputError: the tokens do not fit the model.
    """
    inputs: Inputs = []
    if tokens is not None:
        check_tokens(tokens, config)
        inputs = [
            _embed(params["embed"], tokens[start : start + batch_size], compute)
            for start in range(0, len(tokens), batch_size)
        ]
    new_layers = []
    for index in range(config.n_layers):
        layer_params = action(index, take_layer(params["layers"], index), inputs)
        new_layers.append(layer_params)
        if index + 1 < config.n_layers:
            inputs = [_run_block(layer_params, x_BTD, config) for x_BTD in inputs]
        if progress is not None:
            progress(index + 1, config.n_layers)
    return {**params, "layers": stack_layers(new_layers)}


def check_tokens(
    tokens: Int[Array | np.ndarray, "samples length"], config: LlamaConfig
) -> None:
    """Raises InputError unless a model can read these calibration tokens."""
    if tokens.shape[0] < 1 or tokens.shape[1] < 1:
        raise InputError(f"calibration tokens are empty: shape {tokens.shape}")
    config.check_length(tokens.shape[1])
    lowest, highest = int(tokens.min()), int(tokens.max())
    if lowest < 0 or highest >= config.vocab_size:
        raise InputError(
            f"calibration tokens must be in [0, {config.vocab_size}), found "
            f"{lowest if lowest < 0 else highest}; is this the model's tokenizer?"
        )


@partial(jax.jit, static_argnames="compute")
def _embed(table, tokens_BT, compute):
    return embed({"embed": table}, tokens_BT, compute)


@partial(jax.jit, static_argnames="config")
def _run_block(layer_params, x_BTD, config):
    return block(layer_params, x_BTD, config)[0]


@jax.jit
def take_layer(layers: Tree, index: int | Int[Array, ""]) -> Tree:
    """One layer of a stacked tree; the index is traced, so this compiles once."""
    return jax.tree.map(lambda leaf: leaf[index], layers)


@jax.jit
def stack_layers(layers: list[Tree]) -> Tree:
    """Stacks trees of one layer each on axis 0; the inverse of `take_layer`."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *layers)
