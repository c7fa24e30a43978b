"""The training loop of one stage: resume, step, record, checkpoint."""

import dataclasses
import math
import os
import pathlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from sparse_jax import mesh as mesh_lib
from sparse_jax.train.checkpoint import Checkpoints
from sparse_jax.train.losses import Loss
from sparse_jax.train.metrics import Metrics
from sparse_jax.train.optimizer import OptimizerConfig, ScheduleConfig
from sparse_jax.train.step import train_step
from sparse_jax.types import Batch, InputError, Params, State


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


class TrainingDiverged(InputError):
    """The loss or the gradient stopped being a finite number."""


def fit(
    state: State,
    batches: Callable[[int], Iterator[Batch]],
    config: TrainConfig,
    loss: Loss,
    *,
    directory: str | os.PathLike[str],
    name: str,
    teacher: Params | None = None,
    tokens_before: int = 0,
    quiet: bool = False,
) -> tuple[State, float]:
    """Trains until `config.steps`, continuing from the newest checkpoint if any.

    Metrics of a step are read while the next one runs, so the device never waits for
    the host. A state is saved only after its loss was seen to be finite.

    Args:
      state: the state to start from when there is no checkpoint; consumed.
      batches: gives the batches from a data position on, see `State.data`.
      config: the run.
      loss: see `train.losses`.
      directory: holds `checkpoints/` and metrics.jsonl.
      name: of the stage, for messages.
      teacher: frozen weights handed to the loss.
      tokens_before: tokens the model had seen before this stage.
      quiet: no progress bar and no closing line.

    Returns:
      The final state, and the seconds of training it took over all its starts.

    Raises:
      TrainingDiverged: naming the step and the last good checkpoint.
    """
    directory, mesh = pathlib.Path(directory), mesh_lib.current()
    with (
        jax.set_mesh(mesh),
        Checkpoints(directory / "checkpoints", keep=config.keep_checkpoints) as saved,
        Metrics(directory, config.steps, name, quiet=quiet) as metrics,
    ):
        restored = saved.restore(jax.eval_shape(lambda s: s, state))
        meta: dict[str, Any] = {"seconds": 0.0}
        if restored is not None:
            state, meta = restored
        first = int(state.step)
        # Placed as the step returns it, or the second step would compile again.
        state = jax.device_put(state, mesh_lib.shardings(mesh, state))
        metrics.resume(first)
        run = _Run(config, loss, teacher, metrics, saved, name, tokens_before)
        run.start(first, meta["seconds"])
        stream = batches(int(state.data))
        compiled = None
        for step in range(first, config.steps):
            state = run.step(step, state, next(stream))
            if step == first + 1:
                compiled = _compilations()
        if compiled is not None and _compilations() > compiled:
            raise AssertionError(f"{name}: the training step compiled inside the loop")
        return state, run.seconds()


def _compilations() -> int:
    """How often the training step has been compiled in this process."""
    # JAX counts them, but not in its public interface.
    return train_step._cache_size()  # pyrefly: ignore[missing-attribute]


class _Run:
    """What the loop carries between steps besides the state."""

    def __init__(self, config, loss, teacher, metrics, saved, name, tokens_before):
        self._config, self._loss, self._teacher = config, loss, teacher
        self._metrics, self._saved, self._name = metrics, saved, name
        self._tokens_before = tokens_before
        self._pending: tuple[int, Any] | None = None

    def start(self, step: int, seconds: float) -> None:
        self._seconds_before, self._started = seconds, time.monotonic()
        self._rate_step, self._rate_time = step, self._started

    def seconds(self) -> float:
        return self._seconds_before + time.monotonic() - self._started

    def step(self, step: int, state: State, batch: Batch) -> State:
        """Dispatches one step, then records the one before it."""
        config = self._config
        rate = config.schedule(step, steps=config.steps)
        state, scalars = train_step(
            state,
            to_devices(batch),
            np.float32(rate),
            self._teacher,
            loss=self._loss,
            optimizer=config.optimizer,
            accumulate=config.accumulate,
        )
        self._record()
        self._pending = (step + 1, {**scalars, "learning_rate": rate})
        done = step + 1
        if done % config.checkpoint_every == 0 or done == config.steps:
            self._record()
            self._saved.save(done, state, {"seconds": self.seconds()})
        return state

    def _record(self) -> None:
        """Reads the pending step's scalars, checks them and writes their row."""
        if self._pending is None:
            return
        step, scalars = self._pending
        self._pending = None
        values = {name: float(value) for name, value in scalars.items()}
        if not all(math.isfinite(v) for v in values.values()):
            self._diverged(step, values)
        config = self._config
        if step % config.log_every and step != config.steps:
            self._metrics.advance(step)
            return
        now = time.monotonic()
        tokens = (step - self._rate_step) * config.tokens_per_step
        values["tokens_per_second"] = tokens / (now - self._rate_time)
        self._rate_step, self._rate_time = step, now
        total = self._tokens_before + step * config.tokens_per_step
        self._metrics.write(step, {"tokens": total, **values})

    def _diverged(self, step: int, values: dict[str, float]) -> None:
        self._saved.wait()
        steps = self._saved.steps()
        good = f"step {steps[-1]}" if steps else "none yet"
        raise TrainingDiverged(
            f"{self._name}: loss {values['loss']} and gradient norm "
            f"{values['grad_norm']} at step {step} are not finite; the last good "
            f"checkpoint is {good}; lower train.schedule.peak or look at the data"
        )


def to_devices(batch: Batch) -> Batch:
    """Places this process's rows of a batch on the mesh in use."""
    sharding = mesh_lib.batch_sharding(mesh_lib.current())
    rows = batch.tokens.shape[0] * jax.process_count()
    return Batch(
        *(
            jax.make_array_from_process_local_data(sharding, x, (rows, *x.shape[1:]))
            for x in batch
        )
    )
