"""Causal attention by name: one definition, several implementations."""

from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from sparse_jax.kernels.attention.blockwise import causal_in_blocks
from sparse_jax.kernels.attention.scores import causal_by_scores
from sparse_jax.kernels.attention.splash import causal_by_splash
from sparse_jax.types import InputError

Implementation = Literal["scores", "blockwise", "splash", "cudnn"]

IMPLEMENTATIONS: tuple[str, ...] = get_args(Implementation)


def causal_attention(
    q_BTNH: Float[Array, "B T N H"],
    k_BTKH: Float[Array, "B T K H"],
    v_BTKH: Float[Array, "B T K H"],
    segment_ids_BT: Int[Array, "B T"] | None = None,
    *,
    implementation: str = "scores",
) -> Float[Array, "B T N H"]:
    """Each token attends to itself and those before it, in its own document.

        scores     all T x T scores, on any backend; the oracle of the others
        blockwise  T x 256 scores at a time, on any backend
        splash     JAX's Pallas kernel for TPU; T a multiple of 128
        cudnn      cuDNN's fused kernel for NVIDIA GPUs; half precision, one document

    Args:
      q_BTNH: queries.
      k_BTKH: keys; query head n reads key/value head n // (N / K).
      v_BTKH: values.
      segment_ids_BT: document of every token; None = one.
      implementation: one of the names above; none stands in for another.

    Raises:
      InputError: an unknown name, or one that cannot do this.

    Example:
      >>> x = jnp.ones((1, 4, 2, 8))
      >>> causal_attention(x, x, x, implementation="blockwise").shape
      (1, 4, 2, 8)
    """
    arguments = (q_BTNH, k_BTKH, v_BTKH, segment_ids_BT)
    if implementation == "scores":
        return causal_by_scores(*arguments)
    if implementation == "blockwise":
        return causal_in_blocks(*arguments)
    if implementation == "splash":
        return causal_by_splash(*arguments)
    if implementation == "cudnn":
        return _cudnn(*arguments)
    raise InputError(
        f"compute.attention must be auto or one of {list(IMPLEMENTATIONS)}, "
        f"found {implementation!r}"
    )


def choose(
    platform: str, dtype: jnp.dtype, length: int, *, documents: bool
) -> Implementation:
    """The implementation that `auto` stands for.

    Args:
      platform: "cpu", "gpu" or "tpu".
      dtype: of queries, keys and values.
      length: T.
      documents: whether rows hold several documents that are kept apart.

    Example:
      >>> choose("tpu", jnp.dtype("bfloat16"), 4096, documents=False)
      'splash'
    """
    if platform == "cpu":
        return "scores"
    if platform == "tpu":
        return "splash" if length % 128 == 0 else "blockwise"
    half = dtype in (jnp.bfloat16, jnp.float16)
    return "cudnn" if half and not documents else "blockwise"


def _cudnn(q_BTNH, k_BTKH, v_BTKH, segment_ids_BT):
    if segment_ids_BT is not None or q_BTNH.dtype not in (jnp.bfloat16, jnp.float16):
        raise InputError(
            "compute.attention: 'cudnn' needs bfloat16 or float16 and one document a "
            f"row, found {q_BTNH.dtype}"
            f"{'' if segment_ids_BT is None else ' and isolated documents'}; use "
            "'blockwise'"
        )
    return jax.nn.dot_product_attention(
        q_BTNH, k_BTKH, v_BTKH, is_causal=True, implementation="cudnn"
    )
