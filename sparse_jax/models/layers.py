"""RMSNorm and RoPE as free functions of arrays."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from sparse_jax.models.config import RopeConfig


def rms_norm(
    x: Float[Array, "*B D"], scale_D: Float[Array, " D"], eps: float
) -> Float[Array, "*B D"]:
    """x / sqrt(mean(x^2) + eps) * scale, computed in float32 (arXiv 1910.07467)."""
    x32 = x.astype(jnp.float32)
    variance = jnp.mean(jnp.square(x32), axis=-1, keepdims=True)
    return (x32 * jax.lax.rsqrt(variance + eps) * scale_D).astype(x.dtype)


def rope_frequencies(
    rope: RopeConfig,
    head_dim: int,
    max_seq_len: int,
    length: int | Int[Array, " B"],
) -> Float[Array, "*B half"]:
    """Angular frequency of each pair of head dimensions, in radians per position.

    The i-th of H / 2 frequencies is theta^(-2 i / H), then adapted by `rope.kind`.

    Args:
      rope: the embedding's configuration.
      head_dim: H.
      max_seq_len: context the model was built for (dynamic RoPE grows beyond it).
      length: tokens in the present sequence, or in each one of a batch.

    Returns:
      [H / 2]; for dynamic RoPE with a `length` for each sequence [B, H / 2].
    """
    theta = rope.theta
    if rope.kind == "dynamic":
        stretch = rope.factor * length / max_seq_len - (rope.factor - 1)
        if isinstance(stretch, jax.Array):
            theta *= jnp.maximum(stretch, 1.0)[:, None] ** (head_dim / (head_dim - 2))
        elif stretch > 1:
            theta *= stretch ** (head_dim / (head_dim - 2))
    exponent = jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim
    frequency = 1.0 / theta**exponent
    if rope.kind == "linear":
        return frequency / rope.factor
    if rope.kind == "llama3":
        assert rope.original_max_seq_len is not None  # LlamaConfig checks it
        turns = rope.original_max_seq_len * frequency / (2 * math.pi)
        low, high = rope.low_freq_factor, rope.high_freq_factor
        kept = jnp.clip((turns - low) / (high - low), 0.0, 1.0)
        return frequency * (kept + (1.0 - kept) / rope.factor)
    return frequency


def rope_tables(
    positions_BT: Int[Array, "B T"], frequency: Float[Array, "*#B half"]
) -> tuple[Float[Array, "B T 1 half"], Float[Array, "B T 1 half"]]:
    """Cosine and sine of position x frequency, broadcastable over heads."""
    position_BT11 = positions_BT[:, :, None, None].astype(jnp.float32)
    angle = position_BT11 * frequency[..., None, None, :]
    return jnp.cos(angle), jnp.sin(angle)


def apply_rope(
    x_BTNH: Float[Array, "B T N H"],
    cos: Float[Array, "#B T 1 half"],
    sin: Float[Array, "#B T 1 half"],
) -> Float[Array, "B T N H"]:
    """Rotates the pairs (i, i + H/2) of each head (the half-split layout)."""
    first, second = jnp.split(x_BTNH.astype(jnp.float32), 2, axis=-1)
    rotated = [first * cos - second * sin, second * cos + first * sin]
    return jnp.concatenate(rotated, axis=-1).astype(x_BTNH.dtype)
