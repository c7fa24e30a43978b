"""Distillation from a frozen teacher: its distribution of the next token, its features.

The teacher's and the student's logits exist for one piece of the tokens at a time, and
the teacher keeps nothing for a backward pass. In place of its weights a loss takes the
`TopK` of its logits, see `train.teacher`.
"""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from sparse_jax import models
from sparse_jax.train.divergence_of_logits import Divergence, TopKDivergence
from sparse_jax.train.losses import LossSum, TopK, token_context
from sparse_jax.types import Batch, InputError, Params


@dataclasses.dataclass(frozen=True, kw_only=True)
class DistillConfig:
    """How much a student learns from what.

        ce_weight * CE + kl_weight * tau^2 * KL(p || q) + feature_weight * F   forward
        ce_weight * CE + kl_weight * tau^2 * KL(q || p) + feature_weight * F   reverse

    with p = softmax(teacher / tau) and q = softmax(student / tau). CE and KL are means
    over tokens by their loss weights. SquareHead compares the outputs s of the
    student's blocks with those t of the teacher's,

        F = sum over blocks of  MSE(s, t) / MSE(t, 0)
          = sum over blocks of  sum_c |s_c - t_c|^2 / sum_c |t_c|^2

    where c runs over all counted tokens of all rows at once (`feature_tokens`): one
    ratio per block, not a mean of ratios per token. So a block's weight in F does not
    depend on the size of its features, nor F on how much padding there is. Of several
    micro-batches each has its own F; their mean, weighted by the sums of their loss
    weights, is not the F of the whole batch.

    References: AST, arXiv 2407.20584 (its Llama-2 code has ce_weight 1, kl_weight 0.5,
    tau 2); MiniLLM, arXiv 2306.08543, for the reverse direction; SquareHead,
    arXiv 2310.06927 (feature_weight 1, kl_weight 0, all tokens but padding).

    Attributes:
      ce_weight: of the next token's cross-entropy.
      kl_weight: of the divergence.
      temperature: tau.
      direction: which way the divergence goes.
      feature_weight: of F; the teacher must have the student's depth and width.
      feature_tokens: "all" counts every token in F that is not padding, the prompt's,
        too; "response" only those with a loss weight. Padding is what has a segment id
        below 0, see `types.Batch`.
      top_k: keep so many of the teacher's probabilities per token on disk, and read
        them in place of running it; None = run it in every step.
      cache_dir: where they are kept; None = in the working directory.
    """

    ce_weight: float = 1.0
    kl_weight: float = 0.5
    temperature: float = 2.0
    direction: Literal["forward", "reverse"] = "forward"
    feature_weight: float = 0.0
    feature_tokens: Literal["all", "response"] = "all"
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
            error = square_head(features, teacher_features, self._counted(batch))
            # Like any other sum of a loss, to be divided by the sum of the weights.
            named["features"] = error * batch.loss_weights.sum()
            total += config.feature_weight * named["features"]
        return LossSum(total, batch.loss_weights.sum(), named)

    def _hidden(self, params, batch, model) -> tuple[jax.Array, Any]:
        context = token_context(batch, self.isolate_documents)
        arguments = (params, jnp.asarray(batch.tokens), model, self.compute)
        if self.config.feature_weight:
            return models.hidden_and_features(*arguments, **context)
        return models.hidden(*arguments, **context), None

    def _counted(self, batch: Batch) -> jax.Array:
        """Which tokens F compares."""
        if self.config.feature_tokens == "all":
            return jnp.asarray(batch.segment_ids) >= 0
        return jnp.asarray(batch.loss_weights) > 0

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


def square_head(
    s_LBTD: Float[Array, "L B T D"],
    t_LBTD: Float[Array, "L B T D"],
    counted_BT: Bool[Array, "B T"],
) -> Float[Array, ""]:
    """F of `DistillConfig`, in float32 whatever the features are in.

    It is the same for features of any size, up to 1e30 and down to 1e-30: both models'
    are divided by the largest of the teacher's block before they are squared.

    Args:
      s_LBTD: outputs of the student's blocks.
      t_LBTD: of the teacher's, which get no gradient.
      counted_BT: the tokens that are compared; 0 when there are none. Others may hold
        anything, NaN as well.

    Example:
      >>> t = jnp.full((1, 1, 2, 4), 1e20)
      >>> float(square_head(1.5 * t, t, jnp.array([[True, False]])))
      0.25
    """

    def counted(x_LBTD):
        x_LBTD = x_LBTD.astype(jnp.float32)
        return jnp.where(counted_BT[:, :, None], x_LBTD, 0.0)

    def energy(x_LBTD):
        return jnp.sum(jnp.square(x_LBTD / size_L[:, None, None, None]), axis=(1, 2, 3))

    s_LBTD, t_LBTD = counted(s_LBTD), counted(jax.lax.stop_gradient(t_LBTD))
    largest_L = jnp.max(jnp.abs(t_LBTD), axis=(1, 2, 3))
    size_L = jnp.where(largest_L > 0, largest_L, 1.0)
    # A teacher of zeros makes no ratio: the loss is infinite then, and training stops.
    tiny = jnp.finfo(jnp.float32).tiny
    return jnp.sum(energy(s_LBTD - t_LBTD) / jnp.maximum(energy(t_LBTD), tiny))
