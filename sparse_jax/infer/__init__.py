"""Packing models, and generating text with what was packed."""

from sparse_jax.infer.engine import Engine
from sparse_jax.infer.load import load_model, repack
from sparse_jax.infer.measure import compare, speed_table
from sparse_jax.infer.pack import PackConfig, pack_checkpoint
from sparse_jax.infer.pack_report import pack_table
from sparse_jax.infer.random import random_mask, random_model
from sparse_jax.infer.request import Completion, Token
from sparse_jax.infer.sample import Sampling

__all__ = [
    "Completion",
    "Engine",
    "PackConfig",
    "Sampling",
    "Token",
    "compare",
    "load_model",
    "pack_checkpoint",
    "pack_table",
    "random_mask",
    "random_model",
    "repack",
    "speed_table",
]
