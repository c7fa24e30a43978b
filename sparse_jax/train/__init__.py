"""Training: one jitted step, its loop, losses, optimizer, checkpoints and metrics."""

from sparse_jax.train.checkpoint import Checkpoints
from sparse_jax.train.loop import TrainConfig, TrainingDiverged, fit, to_devices
from sparse_jax.train.losses import Loss, LossSum, NextToken
from sparse_jax.train.metrics import Metrics, read_metrics
from sparse_jax.train.optimizer import OptimizerConfig, ScheduleConfig
from sparse_jax.train.step import init_state, train_step

__all__ = [
    "Checkpoints",
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
    "read_metrics",
    "to_devices",
    "train_step",
]
