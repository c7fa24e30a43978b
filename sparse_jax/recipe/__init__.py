"""Recipes: a config's list of stages, run resumably in a working directory."""

from sparse_jax.recipe.config import Recipe
from sparse_jax.recipe.finetune_comparison import FinetuneComparison
from sparse_jax.recipe.finetune_job import FinetuneJob
from sparse_jax.recipe.prune_job import PruneJob
from sparse_jax.recipe.pruning import run_prune
from sparse_jax.recipe.report_config import Comparison, ReportConfig
from sparse_jax.recipe.run import run
from sparse_jax.recipe.stage_kinds import (
    Evaluate,
    Export,
    Finetune,
    Init,
    OneShot,
    Pretrain,
    Prune,
    Stage,
)

JOBS = {job.kind: job for job in (FinetuneJob, FinetuneComparison)}
"""What stands for a recipe in a few words: kind -> dataclass with a method `recipe`."""

__all__ = [
    "JOBS",
    "Comparison",
    "Evaluate",
    "Export",
    "Finetune",
    "FinetuneComparison",
    "FinetuneJob",
    "Init",
    "OneShot",
    "Pretrain",
    "Prune",
    "PruneJob",
    "Recipe",
    "ReportConfig",
    "Stage",
    "run",
    "run_prune",
]
