"""Sparsity as a pure function of the training step."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from sparse_jax.types import InputError

Step = Int[Array | np.ndarray, "*steps"] | int


def _check(**sparsities: float) -> None:
    for name, sparsity in sparsities.items():
        if not 0.0 <= sparsity < 1.0:
            raise InputError(
                f"schedule: {name} sparsity must be in [0, 1), found {sparsity!r}"
            )


def one_shot(
    step: Step, *, final: float, begin: int = 0, initial: float = 0.0
) -> Float[Array, "*steps"]:
    """Jumps from `initial` to `final` sparsity at step `begin`.

    Example:
      >>> [float(one_shot(step, final=0.5, begin=2)) for step in (1, 2, 3)]
      [0.0, 0.5, 0.5]
    """
    _check(initial=initial, final=final)
    return jnp.where(jnp.asarray(step) >= begin, jnp.float32(final), initial)


def cubic(
    step: Step, *, final: float, begin: int, end: int, initial: float = 0.0
) -> Float[Array | np.ndarray | np.floating, "*steps"]:
    """Rises fast at first and slows down towards `final` sparsity.

    s(t) = final + (initial - final) (1 - (t - begin) / (end - begin))^3 for steps
    between `begin` and `end`, and constant outside.

    Reference: Zhu & Gupta 2017, "To prune, or not to prune", arXiv 1710.01878.

    Example:
      >>> [float(cubic(t, final=0.5, begin=0, end=10)) for t in (0, 5, 10, 99)]
      [0.0, 0.4375, 0.5, 0.5]
    """
    _check(initial=initial, final=final)
    if end <= begin:
        raise InputError(
            f"schedule: end must come after begin, found begin {begin} and end {end}"
        )
    # Of a step on the host it is reckoned there, which training relies on.
    library = jnp if isinstance(step, jax.Array) else np
    remaining = 1.0 - library.clip((step - begin) / (end - begin), 0.0, 1.0)
    return library.float32(final) + library.float32(initial - final) * remaining**3
