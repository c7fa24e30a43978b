"""Llama models as pure functions of (params, batch)."""

from sparse_jax.models.config import Compute, LlamaConfig, RopeConfig
from sparse_jax.models.llama import (
    INPUTS,
    TAPS,
    Gates,
    abstract_params,
    block,
    embed,
    forward,
    head,
    hidden,
    hidden_and_features,
    init,
)
from sparse_jax.models.loss import (
    Objective,
    cross_entropy,
    gather_head,
    head_sums,
    map_logits,
    next_token,
)

__all__ = [
    "INPUTS",
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
    "hidden_and_features",
    "init",
    "map_logits",
    "next_token",
]
