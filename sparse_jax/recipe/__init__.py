"""Recipes: a config's list of stages, run resumably in a working directory."""

from sparse_jax.recipe.config import Recipe
from sparse_jax.recipe.equal_bits import EqualBits
from sparse_jax.recipe.finetune_comparison import FinetuneComparison
from sparse_jax.recipe.finetune_job import FinetuneJob
from sparse_jax.recipe.prune_job import PruneJob
from sparse_jax.recipe.pruning import run_prune
from sparse_jax.recipe.report_config import Comparison, Point, ReportConfig
from sparse_jax.recipe.run import run
from sparse_jax.recipe.sparse_llama import SparseLlama
from sparse_jax.recipe.stage_kinds import (
    Evaluate,
    Export,
    Finetune,
    Init,
    OneShot,
    Pack,
    Pretrain,
    Prune,
    Stage,
)

_JOBS = (FinetuneJob, FinetuneComparison, SparseLlama, EqualBits)
JOBS = {job.kind: job for job in _JOBS}
"""What stands for a recipe in a few words: kind -> dataclass with a method `recipe`."""

__all__ = [
    "JOBS",
    "Comparison",
    "EqualBits",
    "Evaluate",
    "Export",
    "Finetune",
    "FinetuneComparison",
    "FinetuneJob",
    "Init",
    "OneShot",
    "Pack",
    "Point",
    "Pretrain",
    "Prune",
    "PruneJob",
    "Recipe",
    "ReportConfig",
    "SparseLlama",
    "Stage",
    "run",
    "run_prune",
]
