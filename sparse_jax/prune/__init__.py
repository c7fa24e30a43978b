"""One-shot pruning of whole models, block by block."""

from sparse_jax.prune.activations import Activations
from sparse_jax.prune.allocate import AllocationConfig
from sparse_jax.prune.block_training import BlockTrainingConfig
from sparse_jax.prune.blockwise import Action, Blocks, ParamsBlocks, Progress, walk
from sparse_jax.prune.calibrate import hessians, sample_windows
from sparse_jax.prune.config import LINEARS, PruneConfig
from sparse_jax.prune.directory import (
    open_work,
    prune_directory,
    prune_into,
    stored_layer,
    work_directory,
    work_identity,
)
from sparse_jax.prune.one_shot import PrunedModel, check, prune, prune_blocks
from sparse_jax.prune.plan import Plan, make_plan
from sparse_jax.prune.quantize_config import (
    Awq,
    LowRank,
    Outliers,
    QuantizeConfig,
    SmoothQuant,
)
from sparse_jax.prune.solve_block import PrunedBlock, solve_block

__all__ = [
    "LINEARS",
    "Action",
    "Activations",
    "AllocationConfig",
    "Awq",
    "BlockTrainingConfig",
    "Blocks",
    "LowRank",
    "Outliers",
    "ParamsBlocks",
    "Plan",
    "Progress",
    "PruneConfig",
    "PrunedBlock",
    "PrunedModel",
    "QuantizeConfig",
    "SmoothQuant",
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
    "stored_layer",
    "walk",
    "work_directory",
    "work_identity",
]
