"""When training goes wrong: numbers that are not finite, and losses that leap."""

import collections
import dataclasses
import math
import statistics
from collections.abc import Iterable, Mapping
from typing import Literal

from sparse_jax.types import InputError


@dataclasses.dataclass(frozen=True, kw_only=True)
class DivergenceConfig:
    """What counts as diverged, and what to do then.

    A step has diverged when its loss or gradient norm is not finite, or when its loss
    is more than `spike_factor` times the median of the `window` losses before it.

    `skip` goes back to the newest scheduled checkpoint before that step and goes on
    from there with the batches after the bad one, so that neither the bad batch nor
    those that led to it are seen again (as PaLM did, arXiv 2204.02311, section 5.1).
    Steps and learning rate are repeated, the batches are not.

    Attributes:
      action: "stop" with an error, or "skip".
      spike_factor: > 1; None = no loss is too large.
      window: losses in the median. Before a stage has taken so many steps, no loss is
        too large.
      max_rollbacks: of one stage; the next divergence stops it.
    """

    action: Literal["stop", "skip"] = "stop"
    spike_factor: float | None = 3.0
    window: int = 100
    max_rollbacks: int = 3

    def __post_init__(self):
        if self.spike_factor is not None and not self.spike_factor > 1:
            raise InputError(
                f"train.divergence.spike_factor must be > 1, got {self.spike_factor}"
            )
        for name in ("window", "max_rollbacks"):
            if getattr(self, name) < 1:
                raise InputError(
                    f"train.divergence.{name} must be >= 1, got {getattr(self, name)}"
                )


class TrainingDiverged(InputError):
    """Training went wrong in a way that its configuration does not get around."""


class LossWatch:
    """Judges the numbers of every step.

    Example:
      >>> watch = LossWatch(DivergenceConfig(window=3))
      >>> [watch.problem(1, {"loss": loss}) for loss in (4.0, 2.0, 2.5)]
      [None, None, None]
      >>> watch.problem(4, {"loss": 8.0})
      'loss 8 at step 4 is more than 3 times 2.5, the median of the 3 before it'
    """

    def __init__(self, config: DivergenceConfig, losses: Iterable[float] = ()):
        """Goes on after `losses`, see `losses`."""
        self._config = config
        self._losses = collections.deque(losses, maxlen=config.window)

    @property
    def losses(self) -> list[float]:
        """The last losses that were good, oldest first; all that it remembers."""
        return list(self._losses)

    def problem(self, step: int, values: Mapping[str, float]) -> str | None:
        """What is wrong with a step, or None; then its loss is remembered.

        Args:
          step: for the message.
          values: the step's scalars, `loss` among them.
        """
        loss, factor = values["loss"], self._config.spike_factor
        if not all(math.isfinite(value) for value in values.values()):
            norm = values.get("grad_norm")
            return f"loss {loss} and gradient norm {norm} at step {step} are not finite"
        if factor is not None and len(self._losses) == self._config.window:
            median = statistics.median(self._losses)
            if loss > factor * median:
                return (
                    f"loss {loss:g} at step {step} is more than {factor:g} times "
                    f"{median:g}, the median of the {self._config.window} before it"
                )
        self._losses.append(loss)
        return None
