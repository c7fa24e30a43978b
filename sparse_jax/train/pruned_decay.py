"""Decay of pruned weights while masks still move, as part of AdamW.

Pruned weights get the gradient of the loss straight through the mask; a decay that
pulls them to zero decides how long they stay in the race. With W the stored weights,
m the masks (1 = kept), G the gradient, M and V Adam's moments and lambda(t) the decay:

    sr_ste   G' = G + lambda (1 - m) W;   U = M = EMA_b1(G');   V = EMA_b2(G'^2)
    ast      M = EMA_b1(G);   U = M + lambda (1 - m) W;         V = EMA_b2(U^2)
    cast     M = EMA_b1(G);   U = m M + (1 - m) ((1 - a) M + a lambda sign(W));
             V = EMA_b2(U^2),   a = (t + 1) / steps

and the direction is (U / c1) / (sqrt(V / c2) + epsilon) with Adam's corrections
c = 1 - b^(t + 1). Without a decay (DPF, arXiv 2006.07253) it is Adam.

References: SR-STE, arXiv 2102.04010; AST, arXiv 2407.20584; CAST, arXiv 2509.25996.
"""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
import optax

from sparse_jax.sparsity.masks import map_masks
from sparse_jax.types import InputError


@dataclasses.dataclass(frozen=True, kw_only=True)
class PrunedDecayConfig:
    """Decay of pruned weights, see the module.

    Attributes:
      rule: "sr_ste", "ast" or "cast"; "none" leaves pruned weights to the gradient.
      peak: lambda from `rise_steps` on.
      rise_steps: T0; lambda(t) = peak * min(1, (t + 1) / T0) at step t = 0, 1, ...; for
        "cast", whose a rises over all steps, it may stay 0.

    Example:
      >>> config = PrunedDecayConfig(rule="ast", peak=6e-5, rise_steps=3)
      >>> [round(1e5 * config(step), 1) for step in range(4)]
      [2.0, 4.0, 6.0, 6.0]
    """

    rule: Literal["none", "sr_ste", "ast", "cast"] = "none"
    peak: float = 0.0
    rise_steps: int = 0

    def __post_init__(self):
        if self.peak < 0:
            raise InputError(f"pruned_decay.peak must be >= 0, found {self.peak}")
        if self.rise_steps < 0:
            raise InputError(
                f"pruned_decay.rise_steps must be >= 0, found {self.rise_steps}"
            )
        if (self.rule == "none") != (self.peak == 0):
            raise InputError(
                f"pruned_decay: rule {self.rule!r} and peak {self.peak} contradict "
                "each other; set both, or neither"
            )

    def check(self, steps: int) -> None:
        """Raises InputError unless the rise ends within `steps` of training."""
        if self.rise_steps > steps:
            raise InputError(
                f"pruned_decay.rise_steps = {self.rise_steps} ends after training, "
                f"which has {steps} steps; lower it or train longer"
            )

    def __call__(self, step: int) -> float:
        """lambda at step 0, 1, ..."""
        if step + 1 >= self.rise_steps:
            return self.peak
        return self.peak * (step + 1) / self.rise_steps


def scale_by_adam_with_decay(
    rule: Literal["none", "sr_ste", "ast", "cast"],
    *,
    b1: float,
    b2: float,
    eps: float,
    mu_dtype: jax.typing.DTypeLike,
) -> optax.GradientTransformationExtraArgs:
    """Adam's direction with a decay of pruned weights in it; the formulas are above.

    `update` takes, besides gradients, state and params, the keyword arguments `masks`
    (bool, True = kept, None = dense), `decay` (lambda, float32) and `progress` (a).
    Everything is computed in float32, whatever the first moment is stored in. Its state
    is optax's own of Adam.

    Example:
      >>> tx = scale_by_adam_with_decay(
      ...     "ast", b1=0.9, b2=0.95, eps=1e-8, mu_dtype=jnp.float32)
      >>> w, masks = {"a": jnp.array([2.0, 2.0])}, {"a": jnp.array([True, False])}
      >>> u, _ = tx.update({"a": jnp.zeros(2)}, tx.init(w), w, masks=masks,
      ...                  decay=1e-6, progress=1.0)
      >>> [float(u["a"][0]), bool(u["a"][1] > 0)]  # only the pruned weight shrinks
      [0.0, True]
    """
    adam = optax.scale_by_adam(b1=b1, b2=b2, eps=eps, mu_dtype=mu_dtype)
    if rule in ("none", "sr_ste"):
        return _decay_in_gradient(adam) if rule == "sr_ste" else _ignore_masks(adam)

    def update(updates, state, params=None, **given):
        count = optax.safe_increment(state.count)
        mu = optax.tree.update_moment(updates, state.mu, b1, 1)
        add = _add_l2 if rule == "ast" else _add_l1

        def direction(m, mu, w):
            mu = mu.astype(jnp.float32)
            return mu if m is None else add(m, mu, w, given["decay"], given["progress"])

        u = map_masks(direction, given["masks"], mu, params)
        nu = optax.tree.update_moment(u, state.nu, b2, 2)
        u_hat = optax.tree.bias_correction(u, b1, count)
        nu_hat = optax.tree.bias_correction(nu, b2, count)
        scaled = jax.tree.map(lambda u, v: u / (jnp.sqrt(v) + eps), u_hat, nu_hat)
        mu = optax.tree.cast(mu, mu_dtype)
        return scaled, optax.ScaleByAdamState(count=count, mu=mu, nu=nu)

    return optax.GradientTransformationExtraArgs(adam.init, update)


def _ignore_masks(adam):
    def update(updates, state, params=None, **_):
        return adam.update(updates, state, params)

    return optax.GradientTransformationExtraArgs(adam.init, update)


def _decay_in_gradient(adam):
    def update(updates, state, params=None, **given):
        def add(m, g, w):
            return g if m is None else _add_l2(m, g, w, given["decay"], None)

        grads = map_masks(add, given["masks"], updates, params)
        return adam.update(grads, state, params)

    return optax.GradientTransformationExtraArgs(adam.init, update)


def _add_l2(mask, direction, w, decay, _):
    return direction + jnp.where(mask, 0.0, decay * w)


def _add_l1(mask, direction, w, decay, progress):
    pulled = (1 - progress) * direction + progress * decay * jnp.sign(w)
    return jnp.where(mask, direction, pulled)
