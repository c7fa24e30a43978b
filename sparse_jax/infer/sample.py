"""Choosing the next token: greedily, or at random among the likely ones.

A token depends on the logits, the request's seed and its position alone, not on the
batch that it is drawn in.
"""

import dataclasses
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Int32, UInt32

from sparse_jax.types import InputError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampling:
    """How the tokens of a request are chosen.

    Attributes:
      temperature: divides the logits; 0 = the likeliest token always.
      top_k: only the k likeliest tokens; 0 = all.
      top_p: only the likeliest tokens that together have this probability, after
        `top_k`; 1 = all. Equally likely ones are in or out together.
      seed: of the random numbers.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self):
        if not 0 <= self.temperature < float("inf"):
            raise InputError(f"temperature must be >= 0, found {self.temperature}")
        if self.top_k < 0:
            raise InputError(f"top_k must be >= 0 (0 = all), found {self.top_k}")
        if not 0 < self.top_p <= 1:
            raise InputError(f"top_p must be in (0, 1], found {self.top_p}")
        if not 0 <= self.seed < 2**32:
            raise InputError(f"seed must be in [0, 2^32), found {self.seed}")


Settings = dict[str, Array]
"""The settings of a batch as arrays [B], by name; none where all are greedy."""


def stack(requests: Sequence[Sampling]) -> Settings:
    """The settings of a batch."""
    if all(request.temperature == 0 for request in requests):
        return {}
    dtypes = {
        "temperature": np.float32,
        "top_k": np.int32,
        "top_p": np.float32,
        "seed": np.uint32,
    }
    return {
        name: jnp.asarray([getattr(request, name) for request in requests], dtype)
        for name, dtype in dtypes.items()
    }


@jax.jit
def sample(
    logits_BV: Float[Array, "B V"], settings: Settings, positions_B: Int[Array, " B"]
) -> Int32[Array, " B"]:
    """The next token of every row.

    Args:
      logits_BV: of the next token.
      settings: see `stack`.
      positions_B: of the token that is chosen, which tells its random numbers apart.

    Example:
      >>> settings = stack([Sampling(), Sampling(temperature=1.0, top_k=1)])
      >>> logits = jnp.array([[0.0, 2.0, 1.0], [3.0, 2.0, 1.0]])
      >>> sample(logits, settings, jnp.array([7, 7])).tolist()
      [1, 0]
    """
    greedy_B = jnp.argmax(logits_BV, axis=-1).astype(jnp.int32)
    if not settings:
        return greedy_B
    hot_B = settings["temperature"] > 0
    safe_B1 = jnp.where(hot_B, settings["temperature"], 1.0)[:, None]
    scaled_BV = logits_BV / safe_B1
    kept_BV = _keep(scaled_BV, settings["top_k"], settings["top_p"])
    noise_BV = jax.vmap(_gumbel, in_axes=(0, 0, None))(
        settings["seed"], positions_B, logits_BV.shape[-1]
    )
    drawn_BV = jnp.where(kept_BV, scaled_BV + noise_BV, -jnp.inf)
    drawn_B = jnp.argmax(drawn_BV, axis=-1).astype(jnp.int32)
    return jnp.where(hot_B, drawn_B, greedy_B)


def _gumbel(seed: Array, position: Array, size: int) -> Array:
    key = jax.random.fold_in(jax.random.key(seed), position)
    return jax.random.gumbel(key, (size,))


def _keep(scaled_BV: Array, top_k_B: Array, top_p_B: Array) -> Array:
    """True for the tokens that may be drawn.

    Two thresholds are searched instead of sorting the vocabulary, which on CPU takes
    longer than the rest of a small model's step.
    """
    order_BV = _ordered(scaled_BV)
    # Of a conditional, only one branch runs on CPU.
    all_BV = jnp.ones(scaled_BV.shape, bool)

    def by_count() -> Array:
        k_B = jnp.where(top_k_B > 0, top_k_B, scaled_BV.shape[-1])
        return _above(order_BV, lambda kept_BV: kept_BV.sum(-1) >= k_B)

    kept_BV = jax.lax.cond(jnp.any(top_k_B > 0), by_count, lambda: all_BV)

    def by_mass() -> Array:
        p_BV = jax.nn.softmax(jnp.where(kept_BV, scaled_BV, -jnp.inf), axis=-1)

        def enough(above_BV: Array) -> Array:
            # All of them are enough, even where rounding leaves their sum below p.
            mass_B = jnp.sum(p_BV, axis=-1, where=above_BV & kept_BV)
            return mass_B >= jnp.minimum(top_p_B, jnp.sum(p_BV, axis=-1))

        return kept_BV & _above(order_BV, enough)

    return jax.lax.cond(jnp.any(top_p_B < 1), by_mass, lambda: kept_BV)


def _ordered(x_BV: Float[Array, "B V"]) -> UInt32[Array, "B V"]:
    """Integers in the order of the floats."""
    bits_BV = jax.lax.bitcast_convert_type(x_BV.astype(jnp.float32), jnp.uint32)
    sign = jnp.uint32(1 << 31)
    return jnp.where(bits_BV >= sign, ~bits_BV, bits_BV | sign)


def _above(
    order_BV: UInt32[Array, "B V"], enough: Callable[[Array], Array]
) -> Bool[Array, "B V"]:
    """The entries from the highest threshold on whose entries are enough.

    The 32 bits of the threshold of each row are found one after the other.
    """

    def add_bit(step: Array, threshold_B: Array) -> Array:
        higher_B = threshold_B | (jnp.uint32(1 << 31) >> step.astype(jnp.uint32))
        return jnp.where(enough(order_BV >= higher_B[:, None]), higher_B, threshold_B)

    lowest_B = jnp.zeros(order_BV.shape[0], jnp.uint32)
    threshold_B = jax.lax.fori_loop(0, 32, add_bit, lowest_B)
    return order_BV >= threshold_B[:, None]
