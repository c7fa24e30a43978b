"""One-shot pruning of whole models, block by block."""

from sparse_jax.prune.activations import Activations
from sparse_jax.prune.allocate import AllocationConfig
from sparse_jax.prune.blockwise import Action, Blocks, ParamsBlocks, Progress, walk
from sparse_jax.prune.calibrate import hessians, sample_windows
from sparse_jax.prune.config import LINEARS, PruneConfig
from sparse_jax.prune.directory import (
    open_work,
    prune_directory,
    prune_into,
    work_directory,
    work_identity,
)
from sparse_jax.prune.one_shot import check, prune, prune_blocks
from sparse_jax.prune.plan import Plan, make_plan
from sparse_jax.prune.solve_block import PrunedBlock, solve_block

__all__ = [
    "LINEARS",
    "Action",
    "Activations",
    "AllocationConfig",
    "Blocks",
    "ParamsBlocks",
    "Plan",
    "Progress",
    "PruneConfig",
    "PrunedBlock",
    "check",
    "hessians",
    "make_plan",
    "open_work",
    "prune",
    "prune_blocks",
    "prune_directory",
    "prune_into",
    "sample_windows",
    "solve_block",
    "walk",
    "work_directory",
    "work_identity",
]
