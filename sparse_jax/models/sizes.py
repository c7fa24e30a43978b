"""Named model sizes: the public Llamas, and small ones for a laptop."""

from sparse_jax.models.config import LlamaConfig, RopeConfig
from sparse_jax.types import InputError

_LLAMA31_ROPE = RopeConfig(
    kind="llama3",
    theta=500_000.0,
    factor=8.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_seq_len=8192,
)


def _llama2(**shape) -> LlamaConfig:
    return LlamaConfig(vocab_size=32_000, max_seq_len=4096, **shape)


def _llama3(rope: RopeConfig = RopeConfig(theta=500_000.0), **shape) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=128_256,
        n_kv_heads=8,
        max_seq_len=8192 if rope.kind == "default" else 131_072,
        rope=rope,
        bos_token_id=128_000,
        eos_token_id=128_001,
        **shape,
    )


_LLAMA32_ROPE = RopeConfig(
    kind="llama3", theta=500_000.0, factor=32.0, original_max_seq_len=8192
)

SIZES: dict[str, LlamaConfig] = {
    "tiny": LlamaConfig(
        vocab_size=2048,
        d_model=128,
        d_ff=352,
        n_layers=2,
        n_heads=4,
        max_seq_len=256,
        tie_embeddings=True,
        bos_token_id=0,
        eos_token_id=0,
    ),
    "5m": LlamaConfig(
        vocab_size=4096,
        d_model=320,
        d_ff=864,
        n_layers=3,
        n_heads=5,
        max_seq_len=1024,
        tie_embeddings=True,
    ),
    "40m": LlamaConfig(
        vocab_size=8192,
        d_model=512,
        d_ff=1408,
        n_layers=12,
        n_heads=8,
        max_seq_len=1024,
        tie_embeddings=True,
    ),
    "500m": LlamaConfig(  # to measure decoding: no cache holds its weights
        vocab_size=32_000,
        d_model=1536,
        d_ff=4096,
        n_layers=18,
        n_heads=24,
        n_kv_heads=8,
        max_seq_len=2048,
    ),
    "llama2_7b": _llama2(d_model=4096, d_ff=11_008, n_layers=32, n_heads=32),
    "llama2_13b": _llama2(d_model=5120, d_ff=13_824, n_layers=40, n_heads=40),
    "llama2_70b": _llama2(
        d_model=8192, d_ff=28_672, n_layers=80, n_heads=64, n_kv_heads=8
    ),
    "llama3_8b": _llama3(d_model=4096, d_ff=14_336, n_layers=32, n_heads=32),
    "llama3_70b": _llama3(d_model=8192, d_ff=28_672, n_layers=80, n_heads=64),
    "llama3.1_8b": _llama3(
        _LLAMA31_ROPE, d_model=4096, d_ff=14_336, n_layers=32, n_heads=32
    ),
    "llama3.1_70b": _llama3(
        _LLAMA31_ROPE, d_model=8192, d_ff=28_672, n_layers=80, n_heads=64
    ),
    "llama3.2_1b": _llama3(
        _LLAMA32_ROPE,
        d_model=2048,
        d_ff=8192,
        n_layers=16,
        n_heads=32,
        tie_embeddings=True,
    ),
    "llama3.2_3b": _llama3(
        _LLAMA32_ROPE,
        d_model=3072,
        d_ff=8192,
        n_layers=28,
        n_heads=24,
        tie_embeddings=True,
    ),
}
"""Architectures by name."""


def get(name: str) -> LlamaConfig:
    """The architecture of a named size.

    Raises:
      InputError: no such name; the message lists them.

    Example:
      >>> get("llama2_7b").d_ff
      11008
    """
    if name not in SIZES:
        raise InputError(f"model size {name!r} is unknown; choose one of {list(SIZES)}")
    return SIZES[name]
