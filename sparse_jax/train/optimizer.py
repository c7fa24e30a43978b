"""AdamW and learning-rate schedules, as plain functions of frozen configs."""

import dataclasses
import math
import re
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

from sparse_jax.train.pruned_decay import (
    PrunedDecayConfig,
    scale_by_adam_with_decay,
)
from sparse_jax.tree import from_paths, leaf_paths
from sparse_jax.types import InputError, Params


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW (arXiv 1711.05101) with global-norm clipping.

    Attributes:
      beta1: decay of the first moment.
      beta2: decay of the second moment.
      epsilon: added to the root of the second moment.
      weight_decay: decoupled decay of kernels, embeddings and LoRA's factors, not of
        norms and biases.
      clip_norm: gradients are scaled down to this global norm; None = never.
      moment_dtype: of the stored first moment; bfloat16 saves 2 bytes a weight. The
        second one stays float32: its small steps would round away.
      pruned_decay: pulls pruned weights to zero while masks move.
      trainable: regular expressions of the paths of leaves that train, see `partition`;
        the others stay as they are, bit for bit. None = all train.
      rates: (regular expression of leaf paths, factor of the learning rate) pairs; the
        first full match wins, and what matches none has the factor 1.
    """

    beta1: float = 0.9
    beta2: float = 0.95
    epsilon: float = 1e-8
    weight_decay: float = 0.1
    clip_norm: float | None = 1.0
    moment_dtype: Literal["float32", "bfloat16"] = "float32"
    pruned_decay: PrunedDecayConfig = PrunedDecayConfig()
    trainable: tuple[str, ...] | None = None
    rates: tuple[tuple[str, float], ...] = ()

    def __post_init__(self):
        if self.trainable == ():
            raise InputError(
                "optimizer.trainable: nothing would train; name leaves, or leave it out"
            )
        for pattern in self.trainable or ():
            try:
                re.compile(pattern)
            except re.error as error:
                raise InputError(
                    f"optimizer.trainable: {pattern!r} is no regular expression: "
                    f"{error}; correct it"
                ) from error
        for pattern, rate in self.rates:
            if not rate >= 0:
                raise InputError(
                    f"optimizer.rates: {pattern!r} must get a factor >= 0, found {rate}"
                )

    def transformation(self) -> optax.GradientTransformationExtraArgs:
        """Gradients to descent directions; the caller multiplies by -learning rate.

        Its update takes `masks`, `decay` and `progress`; see `pruned_decay`.
        """
        steps = [
            scale_by_adam_with_decay(
                self.pruned_decay.rule,
                b1=self.beta1,
                b2=self.beta2,
                eps=self.epsilon,
                mu_dtype=jnp.dtype(self.moment_dtype),
            ),
            optax.add_decayed_weights(self.weight_decay, mask=_decayed),
        ]
        if self.clip_norm is not None:
            steps.insert(0, optax.clip_by_global_norm(self.clip_norm))
        if self.rates:
            steps.append(optax.stateless(self._at_rates))
        return optax.chain(*steps)

    def _at_rates(self, updates: Any, _: Any) -> Any:
        """Descent directions, each times the factor of its leaf."""

        def factor(path: str) -> float:
            matches = (r for p, r in self.rates if re.fullmatch(p, path))
            return next(matches, 1.0)

        leaves = leaf_paths(updates)
        return from_paths({path: factor(path) * leaf for path, leaf in leaves.items()})


def _decayed(params: Params) -> Params:
    def is_matrix(path, _):
        return path[-1].key in ("kernel", "embedding", "lora_a", "lora_b")

    return jax.tree_util.tree_map_with_path(is_matrix, params)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """Learning rate over the steps of one stage.

    After `warmup_steps` of linear warm-up from 0 to `peak`, with p in [0, 1] the share
    of the remaining steps taken and r = `final_ratio`:

        constant  1
        linear    1 - (1 - r) p
        cosine    r + (1 - r) (1 + cos(pi p)) / 2
        wsd       1 until p = 1 - decay_share, then linear to r (warm-up, stable, decay)

    Attributes:
      kind: shape of the decay.
      peak: highest learning rate.
      warmup_steps: 0 starts at the peak.
      final_ratio: learning rate of the last step over the peak.
      decay_share: wsd; share of the steps after warm-up that decay.

    Example:
      >>> ScheduleConfig(kind="linear", peak=1.0, final_ratio=0.0)(5, steps=11)
      0.5
    """

    kind: Literal["constant", "linear", "cosine", "wsd"] = "cosine"
    peak: float = 3e-4
    warmup_steps: int = 0
    final_ratio: float = 0.1
    decay_share: float = 0.2

    def __post_init__(self):
        if not 0 <= self.final_ratio <= 1:
            raise InputError(
                f"schedule.final_ratio must be in [0, 1], got {self.final_ratio}"
            )
        if not 0 < self.decay_share <= 1:
            raise InputError(
                f"schedule.decay_share must be in (0, 1], got {self.decay_share}"
            )

    def __call__(self, step: int, *, steps: int) -> float:
        """Learning rate of step 0 <= `step` < `steps`."""
        if step < self.warmup_steps:
            return self.peak * (step + 1) / (self.warmup_steps + 1)
        progress = (step - self.warmup_steps) / max(1, steps - 1 - self.warmup_steps)
        ratio = self.final_ratio
        if self.kind == "constant":
            factor = 1.0
        elif self.kind == "linear":
            factor = 1.0 - (1.0 - ratio) * progress
        elif self.kind == "cosine":
            factor = ratio + (1.0 - ratio) * (1.0 + math.cos(math.pi * progress)) / 2
        else:
            into_decay = max(0.0, progress - (1.0 - self.decay_share))
            factor = 1.0 - (1.0 - ratio) * into_decay / self.decay_share
        return self.peak * factor
