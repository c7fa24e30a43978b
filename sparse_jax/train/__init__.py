"""Training: one jitted step, its loop, losses, optimizer, checkpoints and metrics."""

from sparse_jax.train.checkpoint import Checkpoints
from sparse_jax.train.config import TrainConfig
from sparse_jax.train.distill import Distill
from sparse_jax.train.divergence import DivergenceConfig, TrainingDiverged
from sparse_jax.train.loop import fit
from sparse_jax.train.losses import Loss, LossSum, NextToken
from sparse_jax.train.metrics import Metrics, read_metrics
from sparse_jax.train.optimizer import OptimizerConfig, ScheduleConfig
from sparse_jax.train.placement import to_devices
from sparse_jax.train.step import init_state, train_step
from sparse_jax.train.stopping import listen_for_sigterm, stop_if_asked
from sparse_jax.types import Interrupted

__all__ = [
    "Checkpoints",
    "Distill",
    "DivergenceConfig",
    "Interrupted",
    "Loss",
    "LossSum",
    "Metrics",
    "NextToken",
    "OptimizerConfig",
    "ScheduleConfig",
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
