"""What a model's loss is on held-out text, how it answers tasks, what training cost."""

from sparse_jax.evaluate.blockwise import evaluate_blocks
from sparse_jax.evaluate.flops import matmul_weights, training_flops_per_token
from sparse_jax.evaluate.generation import GenerateConfig, Generated, Generator
from sparse_jax.evaluate.harness import run_tasks
from sparse_jax.evaluate.language_model import LanguageModel
from sparse_jax.evaluate.perplexity import (
    EvaluateConfig,
    Evaluation,
    cut_windows,
    evaluate,
)
from sparse_jax.evaluate.prepare import HarnessConfig
from sparse_jax.evaluate.responses import evaluate_responses
from sparse_jax.evaluate.result import TaskResult, results_table
from sparse_jax.evaluate.scoring import Score, Scorer

__all__ = [
    "EvaluateConfig",
    "Evaluation",
    "GenerateConfig",
    "Generated",
    "Generator",
    "HarnessConfig",
    "LanguageModel",
    "Score",
    "Scorer",
    "TaskResult",
    "cut_windows",
    "evaluate",
    "evaluate_blocks",
    "evaluate_responses",
    "matmul_weights",
    "results_table",
    "run_tasks",
    "training_flops_per_token",
]
