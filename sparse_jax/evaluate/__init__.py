"""What a model's loss is on held-out text, and what its training cost."""

from sparse_jax.evaluate.blockwise import evaluate_blocks
from sparse_jax.evaluate.flops import matmul_weights, training_flops_per_token
from sparse_jax.evaluate.perplexity import (
    EvaluateConfig,
    Evaluation,
    cut_windows,
    evaluate,
)

__all__ = [
    "EvaluateConfig",
    "Evaluation",
    "cut_windows",
    "evaluate",
    "evaluate_blocks",
    "matmul_weights",
    "training_flops_per_token",
]
