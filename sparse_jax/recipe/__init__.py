"""Recipes: a config's list of stages, run resumably in a working directory."""

from sparse_jax.recipe.config import (
    Export,
    Init,
    OneShot,
    Pretrain,
    Prune,
    Recipe,
    Stage,
)
from sparse_jax.recipe.prune_job import PruneJob
from sparse_jax.recipe.pruning import run_prune
from sparse_jax.recipe.report_config import Comparison, ReportConfig
from sparse_jax.recipe.run import run

__all__ = [
    "Comparison",
    "Export",
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
