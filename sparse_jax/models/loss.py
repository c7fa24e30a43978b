"""Losses of a language-model head that never hold all logits at once."""

import functools
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from sparse_jax import mesh

Sums = tuple[jax.Array, ...]
"""float32 scalars; the first one is differentiated, the others are only reported."""


@runtime_checkable
class Objective(Protocol):
    """A hashable function of the logits of a piece of the tokens."""

    def __call__(
        self, logits_BCV: jax.Array, tokens: Any, constants: Any
    ) -> tuple[Sums, Callable[[], jax.Array]]:
        """The piece's sums, and a function that gives d sums[0] / d logits."""
        ...


def cross_entropy(
    x_BTD: Float[Array, "B T D"],
    head_DV: Float[Array, "D V"],
    targets_BT: Int[Array | np.ndarray, "B T"],
    weights_BT: Float[Array | np.ndarray, "B T"],
    chunk: int = 4096,
) -> Float[Array, ""]:
    """Weighted sum of next-token losses, in nats.

        sum_bt w_bt * (logsumexp_v(x_bt . head_v) - x_bt . head_target)

    Args:
      x_BTD: final hidden states, float32 or bfloat16.
      head_DV: output projection, dtype of `x_BTD`.
      targets_BT: token ids to predict.
      weights_BT: weight of each target; not differentiated.
      chunk: tokens whose float32 logits exist at one time on a device.

    Returns:
      float32 scalar; divide by `weights_BT.sum()` for the mean.

    Example:
      >>> x, head = jnp.zeros((1, 2, 4)), jnp.zeros((4, 8))
      >>> ids, weights = jnp.zeros((1, 2), int), jnp.ones((1, 2))
      >>> round(float(cross_entropy(x, head, ids, weights) / 2), 4)  # log(8)
      2.0794
    """
    tokens = (targets_BT, weights_BT)
    return head_sums(next_token, chunk, x_BTD, head_DV, tokens, ())[0]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def head_sums(
    objective: Objective,
    chunk: int,
    x_BTD: Float[Array, "B T D"],
    head_DV: Float[Array, "D V"],
    tokens: Any,
    constants: Any,
) -> Sums:
    """Sums an objective of the logits x . head over all tokens, piece by piece.

    The time axis is cut into pieces of at most `chunk` tokens on a device, and the
    gradient of a piece is formed while its logits exist: nothing is recomputed, and
    logits of the other pieces are never stored.

    Args:
      objective: see `Objective`.
      chunk: tokens whose float32 logits exist at one time on a device.
      x_BTD: final hidden states, float32 or bfloat16.
      head_DV: output projection, dtype of `x_BTD`.
      tokens: pytree of [B, T, ...] arrays that are cut like `x_BTD`.
      constants: pytree of arrays that every piece gets whole.

    Returns:
      The objective's sums over all pieces. Only the first is differentiated, and only
      with respect to `x_BTD` and `head_DV`.
    """
    head_DV = gather_head(head_DV)

    def body(total, piece):
        x_BCD, tokens = piece
        sums, _ = objective(_logits(x_BCD, head_DV), tokens, constants)
        return _add(total, sums), None

    pieces = _cut((x_BTD, tokens), chunk)
    return jax.lax.scan(body, _zeros(objective, head_DV, pieces, constants), pieces)[0]


def _forward(objective, chunk, x_BTD, head_DV, tokens, constants):
    head_DV = gather_head(head_DV)

    def body(carry, piece):
        total, grad_head_DV = carry
        x_BCD, tokens = piece
        sums, pull_back = objective(_logits(x_BCD, head_DV), tokens, constants)
        grad_BCV = pull_back().astype(x_BCD.dtype)
        grad_x = jnp.einsum("bcv,dv->bcd", grad_BCV, head_DV)
        grad_head = jnp.einsum(
            "bcd,bcv->dv", x_BCD, grad_BCV, preferred_element_type=jnp.float32
        )
        return (_add(total, sums), grad_head_DV + grad_head), grad_x

    pieces = _cut((x_BTD, tokens), chunk)
    start = (
        _zeros(objective, head_DV, pieces, constants),
        jnp.zeros(head_DV.shape, jnp.float32),
    )
    (total, grad_head_DV), grad_x = jax.lax.scan(body, start, pieces)
    grad_x_BTD = jnp.moveaxis(grad_x, 0, 1).reshape(x_BTD.shape)
    return total, (grad_x_BTD, grad_head_DV.astype(head_DV.dtype))


def _backward(objective, chunk, residuals, cotangents):
    grad_x_BTD, grad_head_DV = residuals
    scale = cotangents[0].astype(grad_x_BTD.dtype)
    return grad_x_BTD * scale, grad_head_DV * scale, None, None


head_sums.defvjp(_forward, _backward)


def map_logits(
    function: Callable[[jax.Array], Any],
    chunk: int,
    x_BTD: Float[Array, "B T D"],
    head_DV: Float[Array, "D V"],
) -> Any:
    """Applies a function to the logits of a piece of the tokens after the other.

    Args:
      function: of float32 logits [B, C, V]; gives a pytree of [B, C, ...] arrays.
      chunk: tokens whose float32 logits exist at one time on a device.
      x_BTD: final hidden states.
      head_DV: output projection, dtype of `x_BTD`.

    Returns:
      The function's pytree over all tokens, [B, T, ...].
    """
    head_DV = gather_head(head_DV)
    found = jax.lax.map(lambda x: function(_logits(x, head_DV)), _cut(x_BTD, chunk))
    shape = x_BTD.shape[:2]
    return jax.tree.map(
        lambda y: jnp.moveaxis(y, 0, 1).reshape(*shape, *y.shape[3:]), found
    )


def next_token(logits_BCV, tokens, constants):
    """The objective of `cross_entropy`; tokens are (targets, weights)."""
    del constants
    targets_BC, weights_BC = tokens
    top_BC1 = jnp.max(logits_BCV, axis=-1, keepdims=True)
    exp_BCV = jnp.exp(logits_BCV - top_BC1)
    sum_BC1 = jnp.sum(exp_BCV, axis=-1, keepdims=True)
    gold_BC1 = jnp.take_along_axis(logits_BCV, targets_BC[..., None], axis=-1)
    loss_BC1 = jnp.log(sum_BC1) + top_BC1 - gold_BC1
    loss = jnp.sum(loss_BC1[..., 0] * weights_BC)

    def pull_back():
        hit_BCV = jnp.arange(logits_BCV.shape[-1]) == targets_BC[..., None]
        return (exp_BCV / sum_BC1 - hit_BCV) * weights_BC[..., None]

    return (loss,), pull_back


def _logits(x_BCD, head_DV):
    return jnp.einsum("bcd,dv->bcv", x_BCD, head_DV, preferred_element_type=jnp.float32)


def gather_head(head_DV):
    """The head cut along V alone: cut along D it would be gathered for every piece."""
    return mesh.constrain(head_DV, None, "tensor")


def _add(total: Sums, sums: Sums) -> Sums:
    return jax.tree.map(jnp.add, total, sums)


def _zeros(objective, head_DV, pieces, constants) -> Sums:
    """What the sums of an objective begin with."""

    def sums(head_DV, piece, constants):
        x_BCD, tokens = piece
        return objective(_logits(x_BCD, head_DV), tokens, constants)[0]

    piece = jax.tree.map(lambda x: x[0], pieces)
    shapes = jax.eval_shape(sums, head_DV, piece, constants)
    return tuple(jnp.zeros(s.shape, s.dtype) for s in shapes)


def _cut(arrays, chunk):
    """Cuts [B, T, ...] arrays into [T / C, B, C, ...], C > 1 only within the chunk."""
    batch, length = jax.tree.leaves(arrays)[0].shape[:2]
    rows = -(-batch // mesh.batch_shards())  # on a device
    longest = max(1, chunk // rows)
    size = next(c for c in range(min(longest, length), 0, -1) if length % c == 0)

    def cut(array):
        shape = (batch, length // size, size, *array.shape[2:])
        return jnp.moveaxis(array.reshape(shape), 1, 0)

    return jax.tree.map(cut, arrays)
