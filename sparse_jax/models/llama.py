"""Functional Flax Llama: pure functions of (params, batch).

    embed -> L x [x + attention(norm(x)); x + mlp(norm(x))] -> norm -> head

Parameters are a plain nested dict; layers are stacked on axis 0 and scanned. The model
never sees masks: a caller applies them to the parameters (`sparsity.masks.apply`).
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from sparse_jax.models.config import Compute, LlamaConfig
from sparse_jax.models.modules import Block, Llama, attention_context
from sparse_jax.types import Params

Gates = dict[str, jax.Array]
"""{"heads": [L, B, N], "neurons": [L, B, F]}: factors on head outputs and neurons."""

TAPS = ("attention_in", "attention_out_in", "mlp_in", "mlp_out_in")
"""Inputs of q/k/v, of o, of gate/up and of down: what calibration reads."""

INPUTS = {
    "attention_in": ("attention/q", "attention/k", "attention/v"),
    "attention_out_in": ("attention/o",),
    "mlp_in": ("mlp/gate", "mlp/up"),
    "mlp_out_in": ("mlp/down",),
}
"""Tap of a block -> the matrices that read it."""


def init(key: jax.Array, config: LlamaConfig) -> Params:
    """Random float32 parameters.

    Example:
      >>> from sparse_jax.models import sizes
      >>> params = init(jax.random.key(0), sizes.get("tiny"))
      >>> params["layers"]["mlp"]["down"]["kernel"].shape
      (2, 352, 128)
    """
    tokens_BT = jnp.zeros((1, 2), jnp.int32)
    # Any: Flax types its results for frozen dicts and mutable collections, too.
    variables: Any = Llama(config).init(key, tokens_BT, None, None, None)
    return variables["params"]


def abstract_params(config: LlamaConfig) -> Params:
    """Shapes and dtypes of the parameters, nothing allocated."""
    # A tree of its own for every caller, traced once.
    return jax.tree.map(lambda leaf: leaf, _abstract_params(config))


@functools.cache
def _abstract_params(config: LlamaConfig) -> Params:
    return jax.eval_shape(lambda key: init(key, config), jax.random.key(0))


def hidden(
    params: Params,
    tokens_BT: Int[Array, "B T"],
    config: LlamaConfig,
    compute: Compute = Compute(),
    *,
    positions: Int[Array, "B T"] | None = None,
    segment_ids: Int[Array, "B T"] | None = None,
    gates: Gates | None = None,
) -> Float[Array, "B T D"]:
    """Hidden states after the final norm, in the compute dtype.

    Args:
      params: float32 parameters.
      tokens_BT: token ids.
      config: architecture.
      compute: dtype, remat and scan options.
      positions: RoPE positions; None = 0 .. T-1.
      segment_ids: document numbers; attention stays inside a document. None = one.
      gates: factors on heads and neurons (see `Gates`), differentiable.

    Raises:
      InputError: the sequence is longer than the model allows.
    """
    config.check_length(tokens_BT.shape[1])
    x_BTD: Any = Llama(config, compute).apply(
        {"params": params}, tokens_BT, positions, segment_ids, gates
    )
    return x_BTD


def hidden_and_features(
    params: Params,
    tokens_BT: Int[Array, "B T"],
    config: LlamaConfig,
    compute: Compute = Compute(),
    *,
    positions: Int[Array, "B T"] | None = None,
    segment_ids: Int[Array, "B T"] | None = None,
) -> tuple[Float[Array, "B T D"], Float[Array, "L B T D"]]:
    """`hidden`, and the outputs of all blocks."""
    config.check_length(tokens_BT.shape[1])
    found: Any = Llama(config, compute).apply(
        {"params": params}, tokens_BT, positions, segment_ids, None, mutable="features"
    )
    x_BTD, kept = found
    return x_BTD, kept["features"]["layers"]["block_out"]


def head(params: Params, dtype: jnp.dtype) -> Float[Array, "D V"]:
    """The output projection, the transposed embedding when tied."""
    if "lm_head" in params:
        return params["lm_head"]["kernel"].astype(dtype)
    return params["embed"]["embedding"].astype(dtype).T


def forward(
    params: Params,
    tokens_BT: Int[Array, "B T"],
    config: LlamaConfig,
    compute: Compute = Compute(),
    *,
    positions: Int[Array, "B T"] | None = None,
    segment_ids: Int[Array, "B T"] | None = None,
    gates: Gates | None = None,
) -> Float[Array, "B T V"]:
    """Next-token logits in float32; arguments as `hidden`."""
    x_BTD = hidden(
        params,
        tokens_BT,
        config,
        compute,
        positions=positions,
        segment_ids=segment_ids,
        gates=gates,
    )
    return jnp.einsum(
        "btd,dv->btv",
        x_BTD,
        head(params, x_BTD.dtype),
        preferred_element_type=jnp.float32,
    )


def embed(
    params: Params, tokens_BT: Int[Array, "B T"], compute: Compute = Compute()
) -> Float[Array, "B T D"]:
    """Token embeddings: the input of the first block."""
    return params["embed"]["embedding"][tokens_BT].astype(compute.jax_dtype)


def block(
    layer_params: Params,
    x_BTD: Float[Array, "B T D"],
    config: LlamaConfig,
    *,
    positions: Int[Array, "B T"] | None = None,
    segment_ids: Int[Array, "B T"] | None = None,
    gates: Gates | None = None,
) -> tuple[Float[Array, "B T D"], dict[str, Array]]:
    """One decoder block and the inputs of its matrices.

    Args:
      layer_params: `params["layers"]` at one layer.
      x_BTD: output of the block before.
      config: architecture.
      positions: as in `hidden`.
      segment_ids: as in `hidden`.
      gates: {"heads": [B, N], "neurons": [B, F]} of this block.

    Returns:
      The block's output and its taps, named as in `TAPS`: `attention_in` and `mlp_in`
      [B, T, D], `attention_out_in` [B, T, N*H], `mlp_out_in` [B, T, F].
    """
    context = attention_context(config, Compute(), x_BTD, positions, segment_ids)
    (y_BTD, _), state = Block(config).apply(
        {"params": layer_params}, x_BTD, gates, *context, mutable=["taps"]
    )
    taps: Any = state["taps"]
    return y_BTD, {
        "attention_in": taps["attention_in"],
        "attention_out_in": taps["attention"]["attention_out_in"],
        "mlp_in": taps["mlp_in"],
        "mlp_out_in": taps["mlp"]["mlp_out_in"],
    }
