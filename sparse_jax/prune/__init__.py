"""One-shot pruning of whole models, block by block."""

from sparse_jax.prune.blockwise import Action, Inputs, walk
from sparse_jax.prune.calibrate import INPUTS, hessians, sample_windows
from sparse_jax.prune.config import LINEARS, PruneConfig
from sparse_jax.prune.one_shot import plan, prune, solve_block

__all__ = [
    "INPUTS",
    "LINEARS",
    "Action",
    "Inputs",
    "PruneConfig",
    "hessians",
    "plan",
    "prune",
    "sample_windows",
    "solve_block",
    "walk",
]
