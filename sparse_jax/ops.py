"""The seams of every layer: one matmul, one mask application, one attention."""

import dataclasses
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from sparse_jax import kernels
from sparse_jax.kernels import PANEL, Packed
from sparse_jax.types import Tree

MaskMode = Literal["fixed", "straight_through", "dense"]


def dot(
    x: Float[Array, "*B in"],
    w: Float[Array, "in out"] | Packed,
    *,
    rows: Bool[Array, " out_panels"] | None = None,
    cols: Bool[Array, " in_panels"] | None = None,
) -> Float[Array, "*B out"]:
    """The one matmul of an activation against a weight, `x @ w`.

    Models call nothing else, so that a weight may be stored in another form. Panels are
    16 consecutive outputs or inputs; a packed matrix is not even read where they are
    inactive, an array is multiplied whole.

    Args:
      x: activations.
      w: the weight, an array [in, out] or a packed matrix, whose product is float32.
      rows: active output panels, [ceil(out / 16)]; the outputs of others are 0.
      cols: active input panels, [ceil(in / 16)]; the inputs of others count as 0.

    Example:
      >>> dot(jnp.ones((2, 3)), jnp.ones((3, 4))).shape
      (2, 4)
      >>> dot(jnp.ones((1, 1)), jnp.ones((1, 17)), rows=jnp.array([False, True])).sum()
      Array(1., dtype=float32)
    """
    if isinstance(w, Packed):
        return kernels.dot(x, w, rows=rows, cols=cols)
    if cols is not None:
        x = _keep_panels(x, cols)
    y = jnp.matmul(x, w)
    return y if rows is None else _keep_panels(y, rows)


def _keep_panels(
    x: Float[Array, "*B n"], active: Bool[Array, " panels"]
) -> Float[Array, "*B n"]:
    kept = jnp.repeat(active, PANEL, total_repeat_length=PANEL * len(active))
    return jnp.where(kept[: x.shape[-1]], x, 0)


def effective_weight(
    w: Float[Array, "*shape"],
    mask: Bool[Array, "*shape"] | None,
    *,
    mode: MaskMode = "fixed",
    fake_quant: Callable[[jax.Array], jax.Array] | None = None,
) -> Float[Array, "*shape"]:
    """The weight that the model multiplies by; the one place masks touch a weight.

        fixed             w_eff = m * q(w),  dL/dw = m * dL/dw_eff
        straight_through  w_eff = m * q(w),  dL/dw = dL/dw_eff
        dense             w_eff = q(w),      dL/dw = dL/dw_eff

    where q is the optional fake quantisation, always passed straight through.

    Args:
      w: stored weight.
      mask: True = kept; None returns the (fake-quantised) dense weight.
      mode: whether pruned entries receive gradient ("straight_through", for masks that
        still move) or not ("fixed"), or are not pruned yet ("dense", for masks that
        only say what decays).
      fake_quant: rounds a weight to its quantisation grid.

    Example:
      >>> mask = jnp.array([[True], [False]])
      >>> effective_weight(jnp.array([[1.0], [2.0]]), mask).tolist()
      [[1.0], [0.0]]
    """
    if fake_quant is not None:
        w = w + jax.lax.stop_gradient(fake_quant(w) - w)
    if mask is None or mode == "dense":
        return w
    masked = jnp.where(mask, w, jnp.zeros_like(w))
    if mode == "fixed":
        return masked
    return w + jax.lax.stop_gradient(masked - w)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Causal:
    """Which keys a query may see: its own and those before it, in its document.

    Attributes:
      segment_ids: document of every token, int [B, T]; None = one.
      implementation: see `kernels.attention.causal_attention`.
    """

    segment_ids: Tree = None
    implementation: str = dataclasses.field(default="scores", metadata={"static": True})


def attention(
    q_BTNH: Float[Array, "B T N H"],
    k_BSKH: Float[Array, "B S K H"],
    v_BSKH: Float[Array, "B S K H"],
    visible: Bool[Array, "#B 1 T S"] | Causal,
) -> Float[Array, "B T N H"]:
    """Grouped-query attention, softmax in float32.

        softmax(q k^T / sqrt(H)) v over the keys that a query may see

    Args:
      q_BTNH: queries.
      k_BSKH: keys; query head n reads key/value head n // (N / K).
      v_BSKH: values.
      visible: a mask, True for the keys that a query may see, or `Causal`, which may
        never form the scores.
    """
    if not isinstance(visible, Causal):
        return kernels.attention.masked_attention(q_BTNH, k_BSKH, v_BSKH, visible)
    return kernels.attention.causal_attention(
        q_BTNH,
        k_BSKH,
        v_BSKH,
        visible.segment_ids,
        implementation=visible.implementation,
    )
