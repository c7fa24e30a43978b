"""The training loop of one stage: resume, step, judge, record, checkpoint."""

import dataclasses
import logging
import os
import pathlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from sparse_jax import mesh as mesh_lib
from sparse_jax.sparsity.adapters import QuantTrainConfig
from sparse_jax.train import mask_change
from sparse_jax.train.adaptive import Adaptive, refresh
from sparse_jax.train.checkpoint import Checkpoints
from sparse_jax.train.compilations import compilations
from sparse_jax.train.config import TrainConfig
from sparse_jax.train.divergence import LossWatch, TrainingDiverged
from sparse_jax.train.losses import Loss
from sparse_jax.train.metrics import Metrics
from sparse_jax.train.placement import (
    scalar_to_devices,
    to_all_devices,
    to_devices,
)
from sparse_jax.train.step import train_step
from sparse_jax.train.stopping import StopPoll, interrupted
from sparse_jax.train.teacher import CachedTeacher
from sparse_jax.types import Batch, Params, State

logger = logging.getLogger(__name__)

Meta = dict[str, Any]
"""What a checkpoint holds besides the state: `seconds` of training so far, the last
`losses` (see `LossWatch`), and a row per rollback in `rollbacks`."""


def fit(
    state: State,
    batches: Callable[[int], Iterator[Batch]],
    config: TrainConfig,
    loss: Loss,
    *,
    directory: str | os.PathLike[str],
    name: str,
    teacher: Params | CachedTeacher | None = None,
    adaptive: Adaptive | None = None,
    quantize: QuantTrainConfig | None = None,
    tokens_before: int = 0,
    quiet: bool = False,
) -> tuple[State, float]:
    """Trains until `config.steps`, continuing from the newest checkpoint if any.

    Metrics of a step are read while the next one runs, so the device never waits for
    the host; nothing else moves between them but batches and learning rates, and a
    transfer that nobody asked for is an error. A state is saved only after its loss was
    judged, see `DivergenceConfig`.

    Args:
      state: the state to start from when there is no checkpoint; consumed.
      batches: gives the batches from a data position on, see `State.data`.
      config: the run.
      loss: see `train.losses`.
      directory: holds `checkpoints/` and metrics.jsonl.
      name: of the stage, for messages.
      teacher: frozen weights, or their cache, for the loss.
      adaptive: draws the masks again while the weights train.
      quantize: the grids beside the kernels, see `train_step`.
      tokens_before: tokens the model had seen before this stage.
      quiet: no progress bar and no closing line.

    Returns:
      The final state, and the seconds of training it took over all its starts.

    Raises:
      TrainingDiverged: naming the step and the last good checkpoint.
      Interrupted: after SIGTERM, with everything saved.
    """
    directory = pathlib.Path(directory)
    kept = {"keep": config.keep_checkpoints, "scheduled": config.saves_at}
    with (
        jax.set_mesh(mesh_lib.current()),
        Checkpoints(directory / "checkpoints", **kept) as saved,
        Metrics(directory, config.steps, name, quiet=quiet) as metrics,
    ):
        like = jax.eval_shape(lambda s: s, state)
        fresh: Meta = {"seconds": 0.0, "losses": [], "rollbacks": []}
        start = saved.restore(like) or (state, fresh)
        del state
        parts = (loss, teacher, adaptive, quantize, batches, metrics, saved)
        run = _Run(config, parts, name, tokens_before)
        while True:
            try:
                return run.train(*start), run.seconds()
            except _BadStep as bad:
                start = run.roll_back(bad, like)


class _BadStep(Exception):
    """A step that has diverged."""

    def __init__(self, step: int, problem: str):
        super().__init__(problem)
        self.step = step


class _Run:
    """What the loop carries between steps besides the state."""

    def __init__(self, config, parts, name, tokens):
        self._config = config
        self._loss, self._teacher, self._adaptive, self._quantize, *others = parts
        self._batches, self._metrics, self._saved = others
        adaptive = self._adaptive
        self._mode = "fixed" if adaptive is None else adaptive.config.mode
        self._name, self._tokens_before = name, tokens
        self._started = time.monotonic()
        self._seconds_before = 0.0

    def seconds(self) -> float:
        """Of training so far, over all starts."""
        return self._seconds_before + time.monotonic() - self._started

    def train(self, state: State, meta: Meta) -> State:
        """Trains from a state to the last step."""
        config, mesh = self._config, mesh_lib.current()
        first = self._begin(state, meta)
        # Placed as the step returns it, or the second step would compile again.
        state = jax.device_put(state, mesh_lib.shardings(mesh, state))
        if config.divergence.action == "skip" and not self._saved.steps():
            self._save(first, state)  # to go back to
        stream, stop, compiled = self._batches(self._first_data), StopPoll(), None
        for step in range(first + 1, config.steps + 1):
            with jax.transfer_guard("disallow"):
                state = self._step(step, state, next(stream))
                asked = stop()
            if asked or config.saves_at(step):
                self._record()
                self._save(step, state)
            if asked:
                self._saved.wait()
                raise interrupted(f"{self._name}: saved after step {step}, stopped")
            compiled = self._check_compilations(step - first, compiled)
        return state

    def _begin(self, state: State, meta: Meta) -> int:
        """Takes up the records at a state's step, and returns that."""
        self._first, self._first_data = int(state.step), int(state.data)
        self._watch = LossWatch(self._config.divergence, meta["losses"])
        self._rollbacks: list[dict[str, Any]] = meta["rollbacks"]
        self._seconds_before, self._started = meta["seconds"], time.monotonic()
        self._rate_step, self._rate_time = self._first, self._started
        self._pending: tuple[int, Any, mask_change.Change] | None = None
        self._metrics.resume(self._first)
        return self._first

    def _step(self, step: int, state: State, local: Batch) -> State:
        """Dispatches a step, then records the one before it."""
        config, batch, teacher = self._config, to_devices(local), self._teacher
        if isinstance(teacher, CachedTeacher):
            position = self._first_data + step - 1 - self._first
            teacher = teacher(position, local, batch)
        if step == 1:
            state, _ = self._draw_masks(0, state, batch)
        rate = config.schedule(step - 1, steps=config.steps)
        decay = config.optimizer.pruned_decay(step - 1)
        state, scalars = train_step(
            state,
            batch,
            scalar_to_devices(rate),
            teacher,
            decay=scalar_to_devices(decay),
            progress=scalar_to_devices(step / config.steps),
            loss=self._loss,
            optimizer=config.optimizer,
            accumulate=config.accumulate,
            mask_mode=self._mode,
            quantize=self._quantize,
        )
        change: mask_change.Change = {}
        if step < config.steps:
            state, change = self._draw_masks(step, state, batch)
        self._record()
        scalars = {**scalars, "learning_rate": rate}
        if config.optimizer.pruned_decay.rule != "none":
            scalars["pruned_decay"] = decay
        self._pending = (step, scalars, change)
        return state

    def _draw_masks(
        self, step: int, state: State, batch: Batch
    ) -> tuple[State, mask_change.Change]:
        """The masks after `step` steps, if they are due."""
        adaptive = self._adaptive
        if adaptive is None or not adaptive.config.due(step):
            return state, {}
        counts = adaptive.counts(state.params, step)
        placed = {path: to_all_devices(c) for path, c in counts.items()}
        return refresh(state, placed, batch, adaptive=adaptive)

    def _record(self) -> None:
        """Reads the pending step's scalars, judges them and writes their row."""
        if self._pending is None:
            return
        (step, scalars, change), self._pending = self._pending, None
        values = {name: float(v) for name, v in jax.device_get(scalars).items()}
        if problem := self._watch.problem(step, values):
            raise _BadStep(step, problem)
        config = self._config
        if change:
            values |= mask_change.summary(jax.device_get(change))
        if step % config.log_every and step != config.steps and not change:
            self._metrics.advance(step)
            return
        now = time.monotonic()
        tokens = (step - self._rate_step) * config.tokens_per_step
        values["tokens_per_second"] = tokens / (now - self._rate_time)
        self._rate_step, self._rate_time = step, now
        if config.divergence.action == "skip":
            values["rollbacks"] = len(self._rollbacks)
            skipped = (r["data_after"] - r["data_before"] for r in self._rollbacks)
            values["skipped_batches"] = sum(skipped)
        total = self._tokens_before + step * config.tokens_per_step
        self._metrics.write(step, {"tokens": total, **values})

    def _save(self, step: int, state: State) -> None:
        self._saved.save(
            step,
            state,
            {
                "seconds": self.seconds(),
                "losses": self._watch.losses,
                "rollbacks": self._rollbacks,
            },
        )

    def _check_compilations(self, steps: int, before: int | None) -> int | None:
        """Fails when a step after the first two has compiled again."""
        found = compilations("train_step") if steps >= 2 else None
        if before is not None and found != before:
            raise AssertionError(
                f"{self._name}: the training step compiled inside the loop"
            )
        return found

    def roll_back(self, bad: _BadStep, like: State) -> tuple[State, Meta]:
        """The newest scheduled checkpoint before a bad step, its data moved past it.

        SIGTERM's checkpoints do not count: a run that was interrupted goes back to the
        same step as one that was not.

        Raises:
          TrainingDiverged: the configuration says to stop, or this was once too often.
        """
        config = self._config.divergence
        self._saved.wait()
        good = [step for step in self._saved.steps() if self._config.saves_at(step)]
        if config.action == "stop" or len(self._rollbacks) >= config.max_rollbacks:
            often = f" after {len(self._rollbacks)} rollbacks" * bool(self._rollbacks)
            raise TrainingDiverged(
                f"{self._name}: {bad}{often}; the last good checkpoint is "
                f"{f'step {good[-1]}' if good else 'none yet'}; lower "
                "train.schedule.peak or look at the data"
            )
        self._saved.remove_after(good[-1])
        found = self._saved.restore(like)
        assert found is not None  # it raises rather than find nothing
        state, meta = found
        data = self._first_data + bad.step - self._first
        row = {
            "bad_step": bad.step,
            "to_step": int(state.step),
            "data_before": int(state.data),
            "data_after": data,
        }
        logger.warning(
            "%s: %s; going on from step %d without batches %d to %d",
            *(self._name, bad, row["to_step"], row["data_before"], data - 1),
        )
        state = dataclasses.replace(state, data=np.int32(data))
        rollbacks = [*self._rollbacks, row]
        return state, meta | {"seconds": self.seconds(), "rollbacks": rollbacks}
