"""Distillation from a frozen teacher: cross-entropy and divergence of the next token.

The teacher's and the student's logits exist for one piece of the tokens at a time, and
the teacher keeps nothing for a backward pass.
"""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp

from sparse_jax import models
from sparse_jax.train.losses import LossSum, hidden_states
from sparse_jax.types import Batch, InputError, Params


@dataclasses.dataclass(frozen=True, kw_only=True)
class Distill:
    """Mixes the next token's cross-entropy with the divergence from a teacher.

        ce_weight * CE + kl_weight * tau^2 * KL(p || q)                   forward
        ce_weight * CE + kl_weight * tau^2 * KL(q || p)                   reverse

    with p = softmax(teacher / tau) and q = softmax(student / tau), after AST (arXiv
    2407.20584; its Llama-2 code has ce_weight 1, kl_weight 0.5, tau 2) and MiniLLM
    (arXiv 2306.08543) for the reverse direction.

    Attributes:
      model: architecture of the student.
      teacher_model: of the teacher; None = the student's.
      compute: dtype, remat and chunk sizes of both.
      isolate_documents: attention stays inside a document of a packed row.
      ce_weight: of the cross-entropy.
      kl_weight: of the divergence.
      temperature: tau; logits are divided by it in the divergence.
      direction: which way the divergence goes.
    """

    model: models.LlamaConfig
    teacher_model: models.LlamaConfig | None = None
    compute: models.Compute = models.Compute()
    isolate_documents: bool = False
    ce_weight: float = 1.0
    kl_weight: float = 0.5
    temperature: float = 2.0
    direction: Literal["forward", "reverse"] = "forward"

    def __post_init__(self):
        if self.temperature <= 0:
            raise InputError(
                f"distill.temperature must be positive, found {self.temperature}"
            )
        for name in ("ce_weight", "kl_weight"):
            if getattr(self, name) < 0:
                found = getattr(self, name)
                raise InputError(f"distill.{name} must not be negative, found {found}")
        teacher = self.teacher_model or self.model
        if teacher.vocab_size != self.model.vocab_size:
            raise InputError(
                f"distill: the teacher has {teacher.vocab_size} token ids and the "
                f"student {self.model.vocab_size}; use models with one tokenizer"
            )

    def __call__(
        self, params: Params, batch: Batch, teacher: Params | None = None
    ) -> LossSum:
        """See `Loss`; parts are `cross_entropy` and `divergence` (without weights).

        Raises:
          InputError: there is no teacher.
        """
        if teacher is None:
            raise InputError("distill: this loss needs the weights of a teacher")
        teacher = jax.lax.stop_gradient(teacher)
        options = (self.compute, self.isolate_documents)
        x_BTD = hidden_states(params, batch, self.model, *options)
        y_BTE = hidden_states(
            teacher, batch, self.teacher_model or self.model, *options
        )
        total, cross_entropy, divergence = models.head_sums(
            _Divergence(
                self.ce_weight, self.kl_weight, self.temperature, self.direction
            ),
            self.compute.loss_chunk,
            x_BTD,
            models.head(params, x_BTD.dtype),
            (batch.targets, batch.loss_weights, y_BTE),
            (models.gather_head(models.head(teacher, y_BTE.dtype)),),
        )
        parts = {"cross_entropy": cross_entropy, "divergence": divergence}
        return LossSum(total, batch.loss_weights.sum(), parts)


@dataclasses.dataclass(frozen=True)
class _Divergence:
    """The objective of `Distill`, see `models.Objective`.

    Tokens are (targets, weights, the teacher's hidden states), constants its head. With
    z the student's logits and tau q - tau p the forward divergence's gradient,

        d/dz tau^2 KL(q || p) = tau q (log q - log p - KL(q || p))
    """

    ce_weight: float
    kl_weight: float
    temperature: float
    direction: str

    def __call__(self, logits_BCV, tokens, constants):
        """See `models.Objective`."""
        targets_BC, weights_BC, y_BCE = tokens
        (head_EV,) = constants
        tau = self.temperature
        (ce,), ce_gradient = models.next_token(
            logits_BCV, (targets_BC, weights_BC), constants
        )
        teacher_BCV = jnp.einsum(
            "bce,ev->bcv", y_BCE, head_EV, preferred_element_type=jnp.float32
        )
        log_p_BCV = jax.nn.log_softmax(teacher_BCV / tau)
        log_q_BCV = jax.nn.log_softmax(logits_BCV / tau)
        difference_BCV = log_p_BCV - log_q_BCV
        if self.direction == "forward":
            kl_BC = jnp.sum(jnp.exp(log_p_BCV) * difference_BCV, axis=-1)
        else:
            kl_BC = -jnp.sum(jnp.exp(log_q_BCV) * difference_BCV, axis=-1)
        kl = tau**2 * jnp.sum(kl_BC * weights_BC)

        def pull_back():
            q_BCV = jnp.exp(log_q_BCV)
            if self.direction == "forward":
                grad_BCV = q_BCV - jnp.exp(log_p_BCV)
            else:
                grad_BCV = -q_BCV * (difference_BCV + kl_BC[..., None])
            grad_BCV *= self.kl_weight * tau * weights_BC[..., None]
            return self.ce_weight * ce_gradient() + grad_BCV

        return (self.ce_weight * ce + self.kl_weight * kl, ce, kl), pull_back
