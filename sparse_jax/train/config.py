"""The configuration of one training run."""

import dataclasses

from sparse_jax.train.divergence import DivergenceConfig
from sparse_jax.train.optimizer import OptimizerConfig, ScheduleConfig
from sparse_jax.types import InputError


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One training run.

    Attributes:
      steps: optimizer steps.
      batch_size: rows per step over all devices and processes, B.
      seq_len: tokens per row, T.
      accumulate: micro-batches per step; must divide batch_size.
      schedule: learning rate over the steps.
      optimizer: AdamW.
      divergence: what to do about losses that are not finite, or that leap.
      checkpoint_every: steps between checkpoints.
      keep_checkpoints: how many of the newest stay on disk.
      log_every: steps between rows of metrics.jsonl.
    """

    steps: int = 1000
    batch_size: int = 16
    seq_len: int = 128
    accumulate: int = 1
    schedule: ScheduleConfig = ScheduleConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    divergence: DivergenceConfig = DivergenceConfig()
    checkpoint_every: int = 200
    keep_checkpoints: int = 2
    log_every: int = 10

    def __post_init__(self):
        for name in (
            "steps",
            "batch_size",
            "seq_len",
            "accumulate",
            "checkpoint_every",
            "keep_checkpoints",
            "log_every",
        ):
            if getattr(self, name) < 1:
                found = getattr(self, name)
                raise InputError(f"train.{name} must be >= 1, got {found}")
        if self.batch_size % self.accumulate:
            raise InputError(
                f"train.accumulate: {self.accumulate} does not divide "
                f"train.batch_size {self.batch_size}"
            )

    @property
    def tokens_per_step(self) -> int:
        """B x T."""
        return self.batch_size * self.seq_len

    def saves_at(self, step: int) -> bool:
        """Whether a checkpoint is due after so many steps; SIGTERM adds others."""
        return step % self.checkpoint_every == 0 or step == self.steps
