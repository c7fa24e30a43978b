"""Training: one jitted step, its loop, losses, optimizer, checkpoints and metrics."""

from sparse_jax.train.adaptive import Adaptive, AdaptiveConfig
from sparse_jax.train.checkpoint import Checkpoints
from sparse_jax.train.config import TrainConfig
from sparse_jax.train.distill import Distill, DistillConfig
from sparse_jax.train.divergence import DivergenceConfig, TrainingDiverged
from sparse_jax.train.loop import fit
from sparse_jax.train.losses import Loss, LossSum, NextToken, TopK
from sparse_jax.train.metrics import Metrics, read_metrics
from sparse_jax.train.optimizer import OptimizerConfig, ScheduleConfig
from sparse_jax.train.placement import to_devices
from sparse_jax.train.pruned_decay import PrunedDecayConfig
from sparse_jax.train.step import init_state, train_step
from sparse_jax.train.stopping import listen_for_sigterm, stop_if_asked
from sparse_jax.train.teacher import CachedTeacher
from sparse_jax.types import Interrupted

__all__ = [
    "Adaptive",
    "AdaptiveConfig",
    "CachedTeacher",
    "Checkpoints",
    "Distill",
    "DistillConfig",
    "DivergenceConfig",
    "Interrupted",
    "Loss",
    "LossSum",
    "Metrics",
    "NextToken",
    "OptimizerConfig",
    "PrunedDecayConfig",
    "ScheduleConfig",
    "TopK",
    "TrainConfig",
    "TrainingDiverged",
    "fit",
    "init_state",
    "listen_for_sigterm",
    "read_metrics",
    "stop_if_asked",
    "to_devices",
    "train_step",
]
