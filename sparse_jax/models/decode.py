"""A model read on: new tokens after those that a cache holds, through the same blocks.

Layers are looped over, not scanned, since packed matrices of different layers differ in
size. Norms, biases and plain kernels may be stacked as in training.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from sparse_jax.models import layers
from sparse_jax.models.cache import Cache
from sparse_jax.models.config import LlamaConfig
from sparse_jax.models.modules import Block
from sparse_jax.types import Params


def extend(
    params: Params,
    x_BTD: Float[Array, "B T D"],
    cache: Cache,
    config: LlamaConfig,
    *,
    counts: Int[Array, " B"],
    ends: Int[Array, " B"],
) -> tuple[Float[Array, "B D"], Cache]:
    """Reads up to T new tokens of every sequence.

    Args:
      params: `layers`, whose kernels are [L, in, out] or tuples of L packed matrices,
        and `final_norm`.
      x_BTD: embeddings of the new tokens, those of each row first.
      cache: what was read before; donate it to the jitted function around this.
      config: architecture.
      counts: new tokens of each row, 0 to T.
      ends: tokens that each whole sequence will have. Only dynamic RoPE asks: it turns
        keys by the length that is known when they are read, and not again, as Hugging
        Face does.

    Returns:
      The hidden state of each row's last token after the final norm, and the cache
      that holds the new tokens.
    """
    T = x_BTD.shape[1]
    positions_BT = cache.lengths[:, None] + jnp.arange(T)
    length = ends if config.rope.kind == "dynamic" else T
    frequency = layers.rope_frequencies(
        config.rope, config.head_width, config.max_seq_len, length
    )
    cos, sin = layers.rope_tables(positions_BT, frequency)
    mask_B1TS = (jnp.arange(cache.capacity) <= positions_BT[:, :, None])[:, None]
    grown = []
    for index in range(config.n_layers):
        result: Any = Block(config).apply(
            {"params": layer_params(params, index)},
            x_BTD,
            None,
            cos,
            sin,
            mask_B1TS,
            cache.layer(index),
        )
        x_BTD, layer = result
        grown.append(layer)
    last_B1 = jnp.maximum(counts - 1, 0)[:, None]
    x_BD = jnp.take_along_axis(x_BTD, last_B1[:, :, None], axis=1)[:, 0]
    x_BD = layers.rms_norm(x_BD, params["final_norm"]["scale"], config.norm_eps)
    return x_BD, Cache(
        keys=tuple(layer.keys_BKSH for layer in grown),
        values=tuple(layer.values_BKHS for layer in grown),
        lengths=cache.lengths + counts,
    )


def layer_params(params: Params, index: int) -> Params:
    """`params["layers"]` at one layer, packed or stacked."""
    return jax.tree.map(
        lambda leaf: leaf[index],
        params["layers"],
        is_leaf=lambda node: isinstance(node, tuple),
    )
