"""What every solver takes and returns: one matrix to prune, and the pruned matrix."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Shaped

from sparse_jax.sparsity.patterns import Pattern
from sparse_jax.types import InputError

Quantizer = Callable[[Float[Array, " out"], Int[Array, ""]], Float[Array, " out"]]
"""Rounds a column's weights: (values [out], index of the input) -> values [out].

Arrays that it needs are bound with `jax.tree_util.Partial(function, array, ...)`, and
then are traced: another grid of the same shape does not compile again. They carry the
leading axes of the weights, and are mapped along with them.
"""


_PANEL = 512  # rows or columns of H that are worked on at a time


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


def row_shards(matrix: Shaped[Array, "*lead out in"]) -> int:
    """Over how many devices the rows of a matrix are cut, its columns being whole."""
    shard = matrix.sharding.shard_shape(matrix.shape)
    return matrix.shape[-2] // max(1, shard[-2])


def output_energy(
    weights: Float[Array, "*lead out in"], hessian: Float[Array, "... in in"]
) -> Float[Array, "*lead"]:
    """tr(W H W^T): the outputs' summed squares, up to H's constant factor."""
    n_in = weights.shape[-1]
    width = min(n_in, _PANEL)

    def add_panel(i, energy):
        # The last panel is moved up to lie inside; what it repeats counts as zero.
        start = jnp.minimum(i * width, n_in - width)
        h_IP = lax.dynamic_slice_in_dim(hessian, start, width, -1)
        w_OP = lax.dynamic_slice_in_dim(weights, start, width, -1)
        w_OP = jnp.where(start + jnp.arange(width) >= i * width, w_OP, 0)
        product_OP = jnp.matmul(weights, h_IP, precision=lax.Precision.HIGHEST)
        return energy + jnp.sum(product_OP * w_OP, (-2, -1))

    # A product with all of H would have XLA pack a second copy of it.
    zeros = jnp.zeros(weights.shape[:-2])
    return lax.fori_loop(0, -(-n_in // width), add_panel, zeros)


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
    finite, hessian_finite, defects = jax.device_get(_inspect(weights, hessian))
    hessian_name = f"the Hessian of {', '.join(problems)}"
    flags = dict(zip(problems, finite, strict=True)) | {hessian_name: hessian_finite}
    for name, flag in flags.items():
        if not flag:
            raise InputError(
                f"{name} contains NaN or infinite values; check the weights and the "
                "calibration activations it comes from"
            )
    for defect, found in defects.items():
        if found:
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
    """Tells: weights finite, H finite, and what is wrong with H.

    H is read by products with a vector r of random signs, at the speed of memory: H r
    and r H differ where H is not symmetric, and are not finite where H is not. Entries
    that are wrong by 1e-3 of the largest move a product by about sqrt(in) times that.
    """
    # 0 x is not 0 where x is not finite; a sum is vectorised where `all` is not.
    finite = [jnp.sum(matrix * 0) == 0 for matrix in weights]
    if hessian is None:
        return finite, True, {}
    n_in = hessian.shape[-1]
    signs = np.random.default_rng(0).choice(np.array([-1, 1], np.float32), n_in)
    multiply = partial(jnp.matmul, precision=lax.Precision.HIGHEST)
    down, across = multiply(hessian, signs), multiply(signs, hessian)
    diagonal = jnp.diagonal(hessian, axis1=-2, axis2=-1)
    tolerance = 1e-3 * np.sqrt(n_in) * diagonal.max(-1, keepdims=True)
    beside = jnp.where(diagonal == 0, jnp.abs(down), 0)
    defects = {
        "has a negative diagonal": (diagonal < 0).any(),
        "is not symmetric": (jnp.abs(down - across) > tolerance).any(),
        "has a row that is not zero where its diagonal is": (beside > tolerance).any(),
    }
    return finite, jnp.isfinite(down).all(), defects


def need_hessian(solver: str, hessian: jax.Array | None) -> jax.Array:
    """Returns H, or raises InputError where a solver that reads it is given none."""
    if hessian is None:
        raise InputError(f"solver {solver!r} needs a Hessian, and none was given")
    return hessian


def check_count(name: str, value: Any) -> None:
    """Raises InputError unless an option is a positive integer."""
    if not isinstance(value, (int, np.integer)) or isinstance(value, bool) or value < 1:
        raise InputError(f"{name} must be a positive integer, found {value!r}")


def check_scale(name: str, value: Any) -> None:
    """Raises InputError unless an option is a finite number >= 0."""
    number = isinstance(value, (int, float, np.number)) and not isinstance(value, bool)
    if not (number and np.isfinite(value) and value >= 0):
        raise InputError(f"{name} must be a finite number >= 0, found {value!r}")


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
