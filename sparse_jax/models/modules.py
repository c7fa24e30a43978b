"""The Linen modules of a Llama: the thin surface between parameters and free functions.

Everything here may be replaced without touching RoPE, norm, attention or the loss.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from sparse_jax import mesh, ops
from sparse_jax.kernels import Packed
from sparse_jax.models import layers
from sparse_jax.models.config import Compute, LlamaConfig


class Linear(nn.Module):
    """`x @ kernel (+ bias)`; the only module that owns a prunable matrix."""

    features: int
    use_bias: bool
    std: float

    @nn.compact
    def __call__(self, x: Float[Array, "*B in"]) -> Float[Array, "*B out"]:
        kernel = self.get_variable("params", "kernel")
        # Flax would not accept the shapes of others than arrays.
        if not isinstance(kernel, Packed | ops.RoundedInput):
            shape = (x.shape[-1], self.features)
            kernel = self.param("kernel", nn.initializers.normal(self.std), shape)
            kernel = kernel.astype(x.dtype)
        y = ops.dot(x, kernel)
        if self.use_bias:
            y += self.param("bias", nn.initializers.zeros, (self.features,)).astype(
                x.dtype
            )
        return y


class RMSNorm(nn.Module):
    """Root-mean-square norm with a learned scale."""

    eps: float

    @nn.compact
    def __call__(self, x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
        return layers.rms_norm(x, scale, self.eps)


class Attention(nn.Module):
    """Causal grouped-query self-attention, over what a cache holds if there is one.

    Returns the output and the cache with the new keys and values.
    """

    config: LlamaConfig

    @nn.compact
    def __call__(self, x_BTD, cos, sin, visible, gate_BN, cache=None):
        c = self.config
        B, T, _ = x_BTD.shape
        N, K, H = c.n_heads, c.kv_heads, c.head_width
        linear = functools.partial(Linear, use_bias=c.attention_bias)
        q_BTNH = linear(N * H, std=c.init_std, name="q")(x_BTD).reshape(B, T, N, H)
        k_BTKH = linear(K * H, std=c.init_std, name="k")(x_BTD).reshape(B, T, K, H)
        v_BTKH = linear(K * H, std=c.init_std, name="v")(x_BTD).reshape(B, T, K, H)
        q_BTNH = layers.apply_rope(q_BTNH, cos, sin)
        k_BTKH = layers.apply_rope(k_BTKH, cos, sin)
        k_BSKH, v_BSKH = k_BTKH, v_BTKH
        if cache is not None:
            cache = cache.append(k_BTKH, v_BTKH)
            k_BSKH, v_BSKH = cache.read()
        context_BTNH = ops.attention(q_BTNH, k_BSKH, v_BSKH, visible)
        if gate_BN is not None:
            context_BTNH *= gate_BN[:, None, :, None].astype(context_BTNH.dtype)
        context_BTE = context_BTNH.reshape(B, T, N * H)
        _tap(self, "attention_out_in", context_BTE)
        return linear(c.d_model, std=_residual_std(c), name="o")(context_BTE), cache


class MLP(nn.Module):
    """Gated feed-forward layer, `down(silu(gate(x)) * up(x))` (arXiv 2002.05202)."""

    config: LlamaConfig

    @nn.compact
    def __call__(self, x_BTD, gate_BF):
        c = self.config
        linear = functools.partial(Linear, use_bias=c.mlp_bias)
        gate_BTF = linear(c.d_ff, std=c.init_std, name="gate")(x_BTD)
        up_BTF = linear(c.d_ff, std=c.init_std, name="up")(x_BTD)
        hidden_BTF = nn.silu(gate_BTF) * up_BTF
        if gate_BF is not None:
            hidden_BTF *= gate_BF[:, None, :].astype(hidden_BTF.dtype)
        _tap(self, "mlp_out_in", hidden_BTF)
        return linear(c.d_model, std=_residual_std(c), name="down")(hidden_BTF)


class Block(nn.Module):
    """One decoder block. Returns `(x, cache)`, the carry and output of a scan."""

    config: LlamaConfig

    @nn.compact
    def __call__(self, x_BTD, gates, cos, sin, visible, cache=None):
        c = self.config
        gates = gates or {}
        h_BTD = RMSNorm(c.norm_eps, name="attention_norm")(x_BTD)
        _tap(self, "attention_in", h_BTD)
        y_BTD, cache = Attention(c, name="attention")(
            h_BTD, cos, sin, visible, gates.get("heads"), cache
        )
        x_BTD += y_BTD
        h_BTD = RMSNorm(c.norm_eps, name="mlp_norm")(x_BTD)
        _tap(self, "mlp_in", h_BTD)
        x_BTD += MLP(c, name="mlp")(h_BTD, gates.get("neurons"))
        x_BTD = mesh.constrain(x_BTD, mesh.BATCH, None, None)
        _sow(self, "features", "block_out", x_BTD)
        return x_BTD, cache


class Llama(nn.Module):
    """The whole model up to the final norm; `head` gives the output projection."""

    config: LlamaConfig
    compute: Compute = Compute()

    @nn.compact
    def __call__(self, tokens_BT, positions_BT, segment_ids_BT, gates):
        c, compute = self.config, self.compute
        shape = (c.vocab_size, c.d_model)
        normal = nn.initializers.normal(c.init_std)
        embedding_VD = Table(shape, normal, "embedding", name="embed")()
        if not c.tie_embeddings:
            Table(shape[::-1], normal, "kernel", name="lm_head")()
        # Looked up with whole rows: a table cut along D would give activations cut
        # along D, and XLA would replicate them to cut them along the batch.
        embedding_VD = mesh.constrain(embedding_VD, "tensor", None)
        x_BTD = embedding_VD[tokens_BT].astype(compute.jax_dtype)
        x_BTD = mesh.constrain(x_BTD, mesh.BATCH, None, None)
        context = attention_context(c, compute, x_BTD, positions_BT, segment_ids_BT)
        scan_blocks = nn.scan(
            _remat(compute.remat),
            variable_axes={"params": 0, "taps": 0, "features": 0},
            split_rngs={"params": True},
            in_axes=(0, nn.broadcast, nn.broadcast, nn.broadcast),
            length=c.n_layers,
            unroll=compute.scan_unroll,
        )
        x_BTD, _ = scan_blocks(c, name="layers")(x_BTD, gates, *context)
        return RMSNorm(c.norm_eps, name="final_norm")(x_BTD)


class Table(nn.Module):
    """A parameter that is looked up or transposed by its owner."""

    shape: tuple[int, int]
    init_fn: nn.initializers.Initializer
    leaf: str

    @nn.compact
    def __call__(self):
        return self.param(self.leaf, self.init_fn, self.shape)


def attention_context(
    config: LlamaConfig,
    compute: Compute,
    x_BTD: Float[Array, "B T D"],
    positions_BT: jax.Array | None,
    segment_ids_BT: jax.Array | None,
) -> tuple[jax.Array, jax.Array, ops.Causal]:
    """RoPE tables and what attention may see, shared by all blocks."""
    length = x_BTD.shape[1]
    if positions_BT is None:
        positions_BT = jnp.arange(length)[None]
    frequency = layers.rope_frequencies(
        config.rope, config.head_width, config.max_seq_len, length
    )
    cos, sin = layers.rope_tables(positions_BT, frequency)
    documents = segment_ids_BT is not None
    compute = compute.on(jax.default_backend(), length, documents=documents)
    return cos, sin, ops.Causal(segment_ids_BT, compute.attention)


def _residual_std(config: LlamaConfig) -> float:
    return config.init_std / (2 * config.n_layers) ** 0.5


def _tap(module: nn.Module, name: str, x: jax.Array) -> None:
    _sow(module, "taps", name, x)


def _sow(module: nn.Module, collection: str, name: str, x: jax.Array) -> None:
    """Keeps an activation, if the caller asks for its collection."""
    module.sow(collection, name, x, init_fn=lambda: x, reduce_fn=lambda _, new: new)


def _remat(policy: str) -> type[nn.Module]:
    if policy == "none":
        return Block
    saved = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
    return nn.remat(
        Block, prevent_cse=False, policy=saved if policy == "dots" else None
    )
