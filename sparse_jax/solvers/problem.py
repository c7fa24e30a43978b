"""What every solver takes and returns: one matrix to prune, and the pruned matrix."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from sparse_jax.sparsity.patterns import Pattern
from sparse_jax.types import InputError

Quantizer = Callable[[Float[Array, " out"], Int[Array, ""]], Float[Array, " out"]]
"""Rounds a column's weights: (values [out], index of the input) -> values [out].

Arrays that it needs are bound with `jax.tree_util.Partial(function, array, ...)`, and
then are traced: another grid of the same shape does not compile again. They carry the
leading axes of the weights, and are mapped along with them.
"""


@dataclass(frozen=True)
class Problem:
    """One weight matrix to prune.

    Attributes:
      weights: [..., out, in].
      pattern: the shape its zeros may take.
      prior_mask: bool [..., out, in], True = kept; pruned entries stay pruned.
      quantizer: rounds the surviving weights, or None.
    """

    weights: Float[Array, "*lead out in"]
    pattern: Pattern
    prior_mask: Bool[Array, "..."] | None = None  # `validate` compares the shapes
    quantizer: Quantizer | None = None


@dataclass(frozen=True)
class Solution:
    """A pruned matrix.

    Attributes:
      weights: [..., out, in], exactly zero where pruned, in the input's dtype.
      mask: bool [..., out, in], True = kept.
      problem: what was solved.
      hessian: undamped H [..., in, in], or None where none was given.
      damping: damping that was used, per matrix of the leading axes; None if the
        solver uses none. Larger than asked for if the factorisation needed more.
    """

    weights: Float[Array, "*lead out in"]
    mask: Bool[Array, "*lead out in"]
    problem: Problem
    hessian: Float[Array, "... in in"] | None = None
    damping: np.ndarray | None = None

    @cached_property
    def relative_error(self) -> float | np.ndarray:
        """tr(D H D^T) / tr(W H W^T), D = W' - W, undamped H; computed when first read.

        A float for one matrix, float32 [...] over leading axes. 0 / 0 counts as 0.
        """
        if self.hessian is None:
            raise InputError("relative_error needs a Hessian, and none was given")
        error = np.asarray(
            _relative_error(self.problem.weights, self.weights, self.hessian)
        )
        return float(error) if error.ndim == 0 else error


def output_energy(
    weights: Float[Array, "*lead out in"], hessian: Float[Array, "... in in"]
) -> Float[Array, "*lead"]:
    """tr(W H W^T): the outputs' summed squares, up to H's constant factor."""
    product = jnp.matmul(weights, hessian, precision=lax.Precision.HIGHEST)
    return jnp.sum(product * weights, (-2, -1))


@jax.jit
def _relative_error(weights, pruned, hessian):
    weights, pruned = weights.astype(jnp.float32), pruned.astype(jnp.float32)
    energy = output_energy(weights, hessian)
    error = output_energy(pruned - weights, hessian)
    return jnp.where(error == 0, 0.0, error / energy)


def validate(problems: dict[str, Problem], hessian: jax.Array | None) -> None:
    """Raises InputError naming the first array whose shape or values are unusable."""
    for name, problem in problems.items():
        _check_problem(name, problem, hessian)
    weights = [problem.weights for problem in problems.values()]
    # One transfer for all of them: each would wait for the device.
    finite, hessian_finite, negative, asymmetric = jax.device_get(
        _inspect(weights, hessian)
    )
    hessian_name = f"the Hessian of {', '.join(problems)}"
    flags = dict(zip(problems, finite, strict=True)) | {hessian_name: hessian_finite}
    for name, flag in flags.items():
        if not flag:
            raise InputError(
                f"{name} contains NaN or infinite values; check the weights and the "
                "calibration activations it comes from"
            )
    if negative or asymmetric:
        defect = "has a negative diagonal" if negative else "is not symmetric"
        raise InputError(f"{hessian_name} {defect}; H must be a multiple of X^T X")


def _check_problem(name, problem, hessian):
    shape = problem.weights.shape
    problem.pattern.check(shape, name)
    prior = problem.prior_mask
    if prior is not None and (prior.shape != shape or prior.dtype != bool):
        raise InputError(
            f"{name}: prior mask must be bool {shape}, found {prior.dtype} "
            f"{prior.shape}"
        )
    square = (shape[-1], shape[-1])
    if hessian is not None and hessian.shape not in {square, (*shape[:-2], *square)}:
        raise InputError(
            f"{name}: weights {shape} need a Hessian {(*shape[:-2], *square)}, found "
            f"{hessian.shape}"
        )


@jax.jit
def _inspect(weights, hessian):
    """Tells: weights finite, H finite, H with a negative diagonal, H asymmetric."""
    finite = [jnp.isfinite(matrix).all() for matrix in weights]
    if hessian is None:
        return finite, True, False, False
    diagonal = jnp.diagonal(hessian, axis1=-2, axis2=-1)
    asymmetry = jnp.abs(hessian - jnp.swapaxes(hessian, -1, -2)).max((-2, -1))
    return (
        finite,
        jnp.isfinite(hessian).all(),
        (diagonal < 0).any(),
        (asymmetry > 1e-3 * diagonal.max(-1)).any(),
    )


def as_partial(quantizer: Quantizer | None) -> jax.tree_util.Partial | None:
    """Makes a quantizer a pytree, so that compiled functions take it as an argument."""
    if quantizer is None or isinstance(quantizer, jax.tree_util.Partial):
        return quantizer
    return jax.tree_util.Partial(quantizer)


@partial(jax.jit, static_argnames="n_lead")
def round_columns(
    weights: Float[Array, "*lead out in"],
    mask: Bool[Array, "*lead out in"],
    quantizer: jax.tree_util.Partial,
    n_lead: int = 0,
) -> Float[Array, "*lead out in"]:
    """Rounds the kept weights with a quantizer, every column on its own."""

    def round_matrix(weights_OI, mask_OI, quantizer):
        index = jnp.arange(weights_OI.shape[1])
        rounded = jax.vmap(quantizer, (1, 0), 1)(weights_OI, index)
        return jnp.where(mask_OI, rounded, 0)

    for _ in range(n_lead):
        round_matrix = jax.vmap(round_matrix)
    return round_matrix(weights, mask, quantizer)
