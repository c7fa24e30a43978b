"""Cross-entropy of a language-model head that never holds all logits at once."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def cross_entropy(
    x_BTD: Float[Array, "B T D"],
    head_DV: Float[Array, "D V"],
    targets_BT: Int[Array, "B T"],
    weights_BT: Float[Array, "B T"],
    chunk: int = 4096,
) -> Float[Array, ""]:
    """Weighted sum of next-token losses, in nats.

        sum_bt w_bt * (logsumexp_v(x_bt . head_v) - x_bt . head_target)

    The time axis is cut into pieces of at most `chunk` tokens over the whole batch, and
    the gradient of a piece is formed while its logits exist: nothing is recomputed, and
    logits of the other pieces are never stored.

    Args:
      x_BTD: final hidden states, float32 or bfloat16.
      head_DV: output projection, dtype of `x_BTD`.
      targets_BT: token ids to predict.
      weights_BT: weight of each target; not differentiated.
      chunk: tokens whose float32 logits exist at one time.

    Returns:
      float32 scalar; divide by `weights_BT.sum()` for the mean.

    Example:
      >>> x, head = jnp.zeros((1, 2, 4)), jnp.zeros((4, 8))
      >>> ids, weights = jnp.zeros((1, 2), int), jnp.ones((1, 2))
      >>> round(float(cross_entropy(x, head, ids, weights) / 2), 4)  # log(8)
      2.0794
    """

    def body(total, piece):
        return total + _piece_loss(head_DV, *piece)[0], None

    pieces = _cut((x_BTD, targets_BT, weights_BT), chunk)
    return jax.lax.scan(body, jnp.float32(0.0), pieces)[0]


def _forward(x_BTD, head_DV, targets_BT, weights_BT, chunk):
    def body(carry, piece):
        total, grad_head_DV = carry
        loss, pull_back = _piece_loss(head_DV, *piece)
        grad_x, grad_head = pull_back()
        return (total + loss, grad_head_DV + grad_head), grad_x

    pieces = _cut((x_BTD, targets_BT, weights_BT), chunk)
    zero = jnp.zeros(head_DV.shape, jnp.float32)
    (total, grad_head_DV), grad_x = jax.lax.scan(body, (jnp.float32(0.0), zero), pieces)
    grad_x_BTD = jnp.moveaxis(grad_x, 0, 1).reshape(x_BTD.shape)
    return total, (grad_x_BTD, grad_head_DV.astype(head_DV.dtype))


def _backward(chunk, residuals, cotangent):
    grad_x_BTD, grad_head_DV = residuals
    scale = cotangent.astype(grad_x_BTD.dtype)
    return grad_x_BTD * scale, grad_head_DV * scale, None, None


cross_entropy.defvjp(_forward, _backward)


def _piece_loss(head_DV, x_BCD, targets_BC, weights_BC):
    """Loss of one piece, and a function that returns its two gradients."""
    logits_BCV = jnp.einsum(
        "bcd,dv->bcv", x_BCD, head_DV, preferred_element_type=jnp.float32
    )
    top_BC1 = jnp.max(logits_BCV, axis=-1, keepdims=True)
    exp_BCV = jnp.exp(logits_BCV - top_BC1)
    sum_BC1 = jnp.sum(exp_BCV, axis=-1, keepdims=True)
    gold_BC1 = jnp.take_along_axis(logits_BCV, targets_BC[..., None], axis=-1)
    loss_BC1 = jnp.log(sum_BC1) + top_BC1 - gold_BC1
    loss = jnp.sum(loss_BC1[..., 0] * weights_BC)

    def pull_back():
        weight_BC1 = weights_BC[..., None]
        hit_BCV = jnp.arange(logits_BCV.shape[-1]) == targets_BC[..., None]
        grad_BCV = (exp_BCV / sum_BC1 - hit_BCV) * weight_BC1
        grad_BCV = grad_BCV.astype(x_BCD.dtype)
        grad_x = jnp.einsum("bcv,dv->bcd", grad_BCV, head_DV)
        grad_head = jnp.einsum(
            "bcd,bcv->dv", x_BCD, grad_BCV, preferred_element_type=jnp.float32
        )
        return grad_x, grad_head

    return loss, pull_back


def _cut(arrays, chunk):
    """Cuts [B, T, ...] arrays into [T / C, B, C, ...] with B * C <= chunk if C > 1."""
    batch, length = arrays[0].shape[:2]
    longest = max(1, chunk // batch)
    size = next(c for c in range(min(longest, length), 0, -1) if length % c == 0)

    def cut(array):
        shape = (batch, length // size, size, *array.shape[2:])
        return jnp.moveaxis(array.reshape(shape), 1, 0)

    return jax.tree.map(cut, arrays)
