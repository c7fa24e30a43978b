"""Grouped-query attention: with any mask, and causal without scores of T x T."""

from sparse_jax.kernels.attention.causal import (
    IMPLEMENTATIONS,
    Implementation,
    causal_attention,
    choose,
)
from sparse_jax.kernels.attention.scores import masked_attention

__all__ = [
    "IMPLEMENTATIONS",
    "Implementation",
    "causal_attention",
    "choose",
    "masked_attention",
]
