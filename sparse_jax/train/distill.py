"""Distillation from a frozen teacher: its distribution of the next token, its features.

The teacher's and the student's logits exist for one piece of the tokens at a time, and
the teacher keeps nothing for a backward pass. In place of its weights a loss takes the
`TopK` of its logits, see `train.teacher`.
"""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp

from sparse_jax import models
from sparse_jax.train.divergence_of_logits import Divergence, TopKDivergence
from sparse_jax.train.losses import LossSum, TopK, token_context
from sparse_jax.types import Batch, InputError, Params


@dataclasses.dataclass(frozen=True, kw_only=True)
class DistillConfig:
    """How much a student learns from what.

        ce_weight * CE + kl_weight * tau^2 * KL(p || q) + feature_weight * F   forward
        ce_weight * CE + kl_weight * tau^2 * KL(q || p) + feature_weight * F   reverse

    with p = softmax(teacher / tau), q = softmax(student / tau) and, over the outputs s
    of the student's and t of the teacher's blocks,

        F = sum over blocks of |s - t|^2 / |t|^2                          (SquareHead)

    References: AST, arXiv 2407.20584 (its Llama-2 code has ce_weight 1, kl_weight 0.5,
    tau 2); MiniLLM, arXiv 2306.08543, for the reverse direction; SquareHead,
    arXiv 2310.06927 (feature_weight 1, kl_weight 0).

    Attributes:
      ce_weight: of the next token's cross-entropy.
      kl_weight: of the divergence.
      temperature: tau.
      direction: which way the divergence goes.
      feature_weight: of F; the teacher must have the student's depth and width.
      top_k: keep so many of the teacher's probabilities per token on disk, and read
        them in place of running it; None = run it in every step.
      cache_dir: where they are kept; None = in the working directory.
    """

    ce_weight: float = 1.0
    kl_weight: float = 0.5
    temperature: float = 2.0
    direction: Literal["forward", "reverse"] = "forward"
    feature_weight: float = 0.0
    top_k: int | None = None
    cache_dir: str | None = None

    def __post_init__(self):
        if self.temperature <= 0:
            raise InputError(
                f"distill.temperature must be positive, found {self.temperature}"
            )
        for name in ("ce_weight", "kl_weight", "feature_weight"):
            if getattr(self, name) < 0:
                found = getattr(self, name)
                raise InputError(f"distill.{name} must not be negative, found {found}")
        if self.top_k is None:
            return
        if self.top_k < 1:
            raise InputError(f"distill.top_k must be at least 1, found {self.top_k}")
        if self.direction == "reverse" or self.feature_weight:
            raise InputError(
                "distill.top_k keeps what the forward divergence needs; set direction "
                "to 'forward' and feature_weight to 0, or leave top_k out"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Distill:
    """The loss of `DistillConfig`.

    Attributes:
      model: architecture of the student.
      teacher_model: of the teacher; None = the student's.
      compute: dtype, remat and chunk sizes of both.
      isolate_documents: attention stays inside a document of a packed row.
      config: the weights of the parts.
    """

    model: models.LlamaConfig
    teacher_model: models.LlamaConfig | None = None
    compute: models.Compute = models.Compute()
    isolate_documents: bool = False
    config: DistillConfig = DistillConfig()

    def __post_init__(self):
        student, teacher = self.model, self.teacher_model or self.model
        if teacher.vocab_size != student.vocab_size:
            raise InputError(
                f"distill: the teacher has {teacher.vocab_size} token ids and the "
                f"student {student.vocab_size}; use models with one tokenizer"
            )
        shapes = [(m.n_layers, m.d_model) for m in (teacher, student)]
        if self.config.feature_weight and shapes[0] != shapes[1]:
            raise InputError(
                "distill.feature_weight compares block by block, but the teacher has "
                f"{shapes[0][0]} blocks of width {shapes[0][1]} and the student "
                f"{shapes[1][0]} of width {shapes[1][1]}; set it to 0"
            )

    def __call__(
        self, params: Params, batch: Batch, teacher: Params | TopK | None = None
    ) -> LossSum:
        """See `Loss`.

        The parts are `cross_entropy`, `divergence` and `features`, without weights; of
        a `TopK`, also `tail`, the teacher's probability that it leaves out.

        Raises:
          InputError: there is no teacher.
        """
        if teacher is None:
            raise InputError("distill: this loss needs a teacher")
        if isinstance(teacher, TopK):
            return self._from_top_k(params, batch, teacher)
        teacher = jax.lax.stop_gradient(teacher)
        x_BTD, features = self._hidden(params, batch, self.model)
        other = self.teacher_model or self.model
        y_BTE, teacher_features = self._hidden(teacher, batch, other)
        config = self.config
        objective = Divergence(
            config.ce_weight, config.kl_weight, config.temperature, config.direction
        )
        total, *parts = models.head_sums(
            objective,
            self.compute.loss_chunk,
            x_BTD,
            models.head(params, x_BTD.dtype),
            (batch.targets, batch.loss_weights, y_BTE),
            (models.gather_head(models.head(teacher, y_BTE.dtype)),),
        )
        named = dict(zip(("cross_entropy", "divergence"), parts, strict=True))
        if config.feature_weight:
            error = _square_head(features, teacher_features, batch.loss_weights)
            total += config.feature_weight * error
            named["features"] = error
        return LossSum(total, batch.loss_weights.sum(), named)

    def _hidden(self, params, batch, model) -> tuple[jax.Array, Any]:
        context = token_context(batch, self.isolate_documents)
        arguments = (params, jnp.asarray(batch.tokens), model, self.compute)
        if self.config.feature_weight:
            return models.hidden_and_features(*arguments, **context)
        return models.hidden(*arguments, **context), None

    def _from_top_k(self, params, batch, kept: TopK) -> LossSum:
        x_BTD, _ = self._hidden(params, batch, self.model)
        config = self.config
        total, *parts = models.head_sums(
            TopKDivergence(config.ce_weight, config.kl_weight, config.temperature),
            self.compute.loss_chunk,
            x_BTD,
            models.head(params, x_BTD.dtype),
            (batch.targets, batch.loss_weights, kept),
            (),
        )
        names = ("cross_entropy", "divergence", "tail")
        named = dict(zip(names, parts, strict=True))
        return LossSum(total, batch.loss_weights.sum(), named)


def _square_head(s_LBTD, t_LBTD, weights_BT) -> jax.Array:
    """F, times the sum of the tokens' weights like any other sum of a loss."""

    def energy(x_LBTD):
        squares_LBT = jnp.sum(jnp.square(x_LBTD.astype(jnp.float32)), axis=-1)
        return jnp.sum(squares_LBT * weights_BT, axis=(1, 2))

    tiny = jnp.finfo(jnp.float32).tiny
    ratios_L = energy(s_LBTD - t_LBTD) / jnp.maximum(energy(t_LBTD), tiny)
    return jnp.sum(ratios_L) * weights_BT.sum()
