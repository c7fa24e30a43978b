"""What a Llama is (`LlamaConfig`) and how it is computed (`Compute`)."""

import dataclasses
import math
from typing import Literal

import jax
import jax.numpy as jnp

from sparse_jax.kernels import attention
from sparse_jax.types import InputError

RopeKind = Literal["default", "linear", "dynamic", "llama3"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class RopeConfig:
    """Rotary position embedding; Hugging Face names in brackets where they differ.

    Attributes:
      kind: default; linear (positions divided by `factor`); dynamic (NTK: the base
        grows once a sequence is longer than `LlamaConfig.max_seq_len`); llama3 (low
        frequencies divided by `factor`, a smooth band between).
      theta: base of the geometric progression of wavelengths (`rope_theta`).
      factor: how far the context is stretched.
      low_freq_factor: llama3; wavelengths above original_max_seq_len / this are scaled.
      high_freq_factor: llama3; wavelengths below original_max_seq_len / this are kept.
      original_max_seq_len: llama3; context before the stretch
        (`original_max_position_embeddings`).
    """

    kind: RopeKind = "default"
    theta: float = 10_000.0
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_seq_len: int | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class LlamaConfig:
    """Architecture of a Llama 1, 2, 3 or 3.x model.

    Attributes:
      vocab_size: V.
      d_model: D, width of the residual stream.
      d_ff: F, width of the gated feed-forward layer.
      n_layers: L.
      n_heads: N query heads.
      n_kv_heads: K key/value heads; None = N. N must be a multiple of K.
      head_dim: H; None = D / N.
      max_seq_len: longest sequence the model was built for.
      rope: rotary position embedding.
      norm_eps: epsilon of every RMSNorm.
      tie_embeddings: the head is the transposed embedding.
      attention_bias: biases on q, k, v and o.
      mlp_bias: biases on gate, up and down.
      init_std: standard deviation of the initial weights; o and down are divided by
        sqrt(2 L) as in GPT-2.
      bos_token_id: first token of a document, if any.
      eos_token_id: last token of a document, if any.
    """

    vocab_size: int
    d_model: int
    d_ff: int
    n_layers: int
    n_heads: int
    n_kv_heads: int | None = None
    head_dim: int | None = None
    max_seq_len: int = 2048
    rope: RopeConfig = RopeConfig()
    norm_eps: float = 1e-5
    tie_embeddings: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False
    init_std: float = 0.02
    bos_token_id: int | None = 1
    eos_token_id: int | None = 2

    def __post_init__(self):
        sizes = ("vocab_size", "d_model", "d_ff", "n_layers", "n_heads")
        for name in (*sizes, "n_kv_heads", "head_dim", "max_seq_len"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"model.{name} must be >= 1, got {value}")
        if self.head_dim is None and self.d_model % self.n_heads:
            raise InputError(
                f"model.n_heads: {self.n_heads} does not divide d_model "
                f"{self.d_model}; choose another number or set model.head_dim"
            )
        if self.n_heads % self.kv_heads:
            raise InputError(
                f"model.n_kv_heads: {self.kv_heads} does not divide "
                f"n_heads {self.n_heads}"
            )
        if self.head_width % 2:
            raise InputError(
                f"model.head_dim must be even for RoPE, got {self.head_width}"
            )
        _check_rope(self.rope)

    @property
    def kv_heads(self) -> int:
        """K, with the default filled in."""
        return self.n_heads if self.n_kv_heads is None else self.n_kv_heads

    @property
    def head_width(self) -> int:
        """H, with the default filled in."""
        return self.d_model // self.n_heads if self.head_dim is None else self.head_dim

    @property
    def context(self) -> int:
        """Tokens of the longest sequence that the model allows."""
        if self.rope.kind == "dynamic":
            return int(self.max_seq_len * self.rope.factor)
        return self.max_seq_len

    @property
    def mesh_needs(self) -> dict[str, tuple[tuple[str, ...], int]]:
        """What the axes of a mesh must divide, see `mesh.check`."""
        tensor = {
            "model.n_heads": self.n_heads,
            "model.n_kv_heads": self.kv_heads,
            "model.vocab_size": self.vocab_size,
            "model.d_ff": self.d_ff,
        }
        needs: dict[str, tuple[tuple[str, ...], int]]
        needs = {name: (("tensor",), size) for name, size in tensor.items()}
        needs["model.d_model"] = (("fsdp",), self.d_model)
        return needs

    def check_length(self, length: int) -> None:
        """Raises InputError when a sequence is longer than the model allows."""
        if length > self.context:
            raise InputError(
                f"a sequence of {length} tokens is longer than the model allows "
                f"({self.context}); shorten it or raise model.max_seq_len"
            )


def _check_rope(rope: RopeConfig) -> None:
    for name in ("theta", "factor", "low_freq_factor"):
        if not 0 < getattr(rope, name) < math.inf:
            raise InputError(
                f"model.rope.{name} must be positive, got {getattr(rope, name)}"
            )
    if rope.high_freq_factor <= rope.low_freq_factor:
        raise InputError(
            f"model.rope.high_freq_factor {rope.high_freq_factor} must be larger than "
            f"low_freq_factor {rope.low_freq_factor}"
        )
    if rope.kind == "llama3" and rope.original_max_seq_len is None:
        raise InputError("model.rope.original_max_seq_len must be set for llama3 RoPE")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Compute:
    """How a model is executed; changes speed and memory, not what is computed.

    Attributes:
      dtype: activations and the weights they meet: float32, bfloat16, or auto (bfloat16
        on accelerators, float32 on CPU). Master weights are float32 always.
      remat: what the backward pass recomputes: none, dots (all but matmul results) or
        block (everything but the input of each block).
      scan_unroll: layers per step of the scan over layers; 1 keeps compile time
        independent of depth, the number of layers is fastest on CPU.
      loss_chunk: tokens whose logits exist at one time on a device.
      attention: see `kernels.attention`: scores, blockwise, splash (TPU), cudnn (GPU),
        or auto (scores on CPU, else the one that never holds all scores).
    """

    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    remat: Literal["none", "dots", "block"] = "none"
    scan_unroll: int = 1
    loss_chunk: int = 4096
    attention: Literal["auto", "scores", "blockwise", "splash", "cudnn"] = "auto"

    def on(self, platform: str, length: int, *, documents: bool) -> "Compute":
        """The same with every `auto` replaced by what it stands for.

        Args:
          platform: "cpu", "gpu" or "tpu".
          length: tokens of a row.
          documents: whether attention is kept inside the documents of a row.

        Example:
          >>> compute = Compute().on("tpu", 4096, documents=False)
          >>> compute.dtype, compute.attention
          ('bfloat16', 'splash')
        """
        dtype, name = self.dtype, self.attention
        if dtype == "auto":
            dtype = "float32" if platform == "cpu" else "bfloat16"
        if name == "auto":
            half = jnp.dtype(dtype)
            name = attention.choose(platform, half, length, documents=documents)
        return dataclasses.replace(self, dtype=dtype, attention=name)

    @property
    def jax_dtype(self) -> jnp.dtype:
        """The activation dtype on the present backend."""
        return jnp.dtype(self.on(jax.default_backend(), 1, documents=False).dtype)
