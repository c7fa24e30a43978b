"""Llama models as pure functions of (params, batch)."""

from sparse_jax.models.config import Compute, LlamaConfig, RopeConfig
from sparse_jax.models.llama import (
    TAPS,
    Gates,
    abstract_params,
    block,
    embed,
    forward,
    head,
    hidden,
    init,
)
from sparse_jax.models.loss import (
    Objective,
    cross_entropy,
    gather_head,
    head_sums,
    next_token,
)

__all__ = [
    "TAPS",
    "Compute",
    "Gates",
    "LlamaConfig",
    "Objective",
    "RopeConfig",
    "abstract_params",
    "block",
    "cross_entropy",
    "embed",
    "forward",
    "gather_head",
    "head",
    "head_sums",
    "hidden",
    "init",
    "next_token",
]
