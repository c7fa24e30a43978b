"""Objectives of a language-model head that compare two distributions of a token.

With z the student's logits, p the teacher's and q the student's softmax at temperature
tau; see `models.Objective`.
"""

import dataclasses

import jax
import jax.numpy as jnp

from sparse_jax import models


@dataclasses.dataclass(frozen=True)
class Divergence:
    """ce_weight * CE + kl_weight * tau^2 * KL, from the teacher's hidden states.

    Tokens are (targets, weights, the teacher's hidden states), constants its head. The
    gradient of the divergence is tau (q - p) forward, and reverse

        d/dz tau^2 KL(q || p) = tau q (log q - log p - KL(q || p))
    """

    ce_weight: float
    kl_weight: float
    temperature: float
    direction: str

    def __call__(self, logits_BCV, tokens, constants):
        """See `models.Objective`; the sums are (total, CE, tau^2 KL)."""
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


@dataclasses.dataclass(frozen=True)
class TopKDivergence:
    """The same, forward, from the teacher's k highest probabilities.

    All other tokens count as one, of probability p_rest = 1 - sum p_k, so that the
    divergence is never more than the whole one. Tokens are (targets, weights, TopK).
    With q_rest alike, the gradient is tau (q - r), where r is p on the k tokens and
    q p_rest / q_rest elsewhere.
    """

    ce_weight: float
    kl_weight: float
    temperature: float

    def __call__(self, logits_BCV, tokens, constants):
        """See `models.Objective`; the sums are (total, CE, tau^2 KL, p_rest)."""
        targets_BC, weights_BC, kept = tokens
        tau, tiny = self.temperature, jnp.finfo(jnp.float32).tiny
        (ce,), ce_gradient = models.next_token(
            logits_BCV, (targets_BC, weights_BC), constants
        )
        log_q_BCV = jax.nn.log_softmax(logits_BCV / tau)
        log_q_BCk = jnp.take_along_axis(log_q_BCV, kept.ids, axis=-1)
        log_p_BCk = kept.log_probs.astype(jnp.float32)
        p_BCk = jnp.exp(log_p_BCk)
        p_rest_BC = jnp.maximum(1 - jnp.sum(p_BCk, axis=-1), tiny)
        q_rest_BC = jnp.maximum(1 - jnp.sum(jnp.exp(log_q_BCk), axis=-1), tiny)
        rest_BC = p_rest_BC * (jnp.log(p_rest_BC) - jnp.log(q_rest_BC))
        kl_BC = jnp.sum(p_BCk * (log_p_BCk - log_q_BCk), axis=-1) + rest_BC
        kl = tau**2 * jnp.sum(kl_BC * weights_BC)
        rest = jnp.sum(p_rest_BC * weights_BC)

        def pull_back():
            q_BCV = jnp.exp(log_q_BCV)
            target_BCV = q_BCV * (p_rest_BC / q_rest_BC)[..., None]
            target_BCV = jnp.put_along_axis(
                target_BCV, kept.ids, p_BCk, axis=-1, inplace=False
            )
            factor_BC1 = self.kl_weight * tau * weights_BC[..., None]
            return self.ce_weight * ce_gradient() + factor_BC1 * (q_BCV - target_BCV)

        total = self.ce_weight * ce + self.kl_weight * kl
        return (total, ce, kl, rest), pull_back
