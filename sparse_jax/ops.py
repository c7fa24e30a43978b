"""The seams of every layer: one matmul, one mask application, one attention."""

import dataclasses
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int8

from sparse_jax import kernels
from sparse_jax.kernels import PANEL, Packed
from sparse_jax.kernels.quantize import quantize_activations
from sparse_jax.types import Tree

MaskMode = Literal["fixed", "straight_through", "dense"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class RoundedInput:
    """A weight whose inputs are rounded to 8 bits, as the int8 kernels round them.

        x' = scale * clip(round(x / scale), -127, 127)

    It computes on any device what the packed int8 types compute, if the weight lies on
    their grid; see `quant.round_inputs`.

    Attributes:
      kernel: [*L, in, out].
      scale: of all inputs, [*L]; None takes max|x| / 127 of each token.
      active: bool [*L], False where the inputs are left as they are; None = everywhere.
    """

    kernel: Float[Array, "*L in out"]
    scale: Float[Array, "*L"] | None = None
    active: Bool[Array, "*L"] | None = None

    def dot(self, x: Float[Array, "*B in"]) -> Float[Array, "*B out"]:
        """Rounded x times the kernel, in float32, then in the dtype of x."""
        x_BI = x.reshape(-1, x.shape[-1]).astype(jnp.float32)
        if self.scale is None:
            codes_BI, scale = quantize_activations(x_BI)
        else:
            scale = self.scale
            codes_BI = jnp.clip(jnp.round(x_BI / scale), -127, 127)
        codes_BI = codes_BI.astype(jnp.float32)
        if self.active is not None:
            codes_BI = jnp.where(self.active, codes_BI, x_BI)
            scale = jnp.where(self.active, scale, 1.0)
        y_BO = jnp.matmul(codes_BI, self.kernel.astype(jnp.float32)) * scale
        return y_BO.reshape(*x.shape[:-1], -1).astype(x.dtype)


def dot(
    x: Float[Array, "*B in"],
    w: Float[Array, "in out"] | Packed | RoundedInput,
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
      w: the weight, an array [in, out], one with rounded inputs, or a packed matrix,
        whose product is float32.
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
    y = w.dot(x) if isinstance(w, RoundedInput) else jnp.matmul(x, w)
    return y if rows is None else _keep_panels(y, rows)


def _keep_panels(
    x: Float[Array, "*B n"], active: Bool[Array, " panels"]
) -> Float[Array, "*B n"]:
    kept = jnp.repeat(active, PANEL, total_repeat_length=PANEL * len(active))
    return jnp.where(kept[: x.shape[-1]], x, 0)


def effective_weight(
    w: Float[Array, "*shape"] | Int8[Array, "*shape"],
    mask: Bool[Array, "*shape"] | None,
    *,
    mode: MaskMode = "fixed",
    fake_quant: Callable[[jax.Array], jax.Array] | None = None,
) -> Float[Array, "*shape"] | Int8[Array, "*shape"]:
    """The weight that the model multiplies by; the one place masks touch a weight.

        fixed             w_eff = m * q(w),  dL/dw = m * dL/dw_eff
        straight_through  w_eff = m * q(w),  dL/dw = dL/dw_eff
        dense             w_eff = q(w),      dL/dw = dL/dw_eff

    where q is the optional fake quantisation, times its own gradient: that of
    `quant.fake_quantize` passes straight through its rounding, and stops outside of the
    grid. The mask has the last word, so that zeros are exact whatever q does.

    Args:
      w: stored weight, or its codes.
      mask: True = kept; None returns the (fake-quantised) dense weight.
      mode: whether pruned entries receive gradient ("straight_through", for masks that
        still move) or not ("fixed"), or are not pruned yet ("dense", for masks that
        only say what decays).
      fake_quant: rounds a weight to its quantisation grid, differentiably.

    Example:
      >>> mask = jnp.array([[True], [False]])
      >>> effective_weight(jnp.array([[1.0], [2.0]]), mask).tolist()
      [[1.0], [0.0]]
    """
    if fake_quant is not None:
        w = fake_quant(w)
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
