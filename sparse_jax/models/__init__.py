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
from sparse_jax.models.loss import cross_entropy

__all__ = [
    "TAPS",
    "Compute",
    "Gates",
    "LlamaConfig",
    "RopeConfig",
    "abstract_params",
    "block",
    "cross_entropy",
    "embed",
    "forward",
    "head",
    "hidden",
    "init",
]
