"""Attention by its definition: all scores at once, under any mask."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


def masked_attention(
    q_BTNH: Float[Array, "B T N H"],
    k_BSKH: Float[Array, "B S K H"],
    v_BSKH: Float[Array, "B S K H"],
    mask_B1TS: Bool[Array, "#B 1 T S"],
) -> Float[Array, "B T N H"]:
    """Grouped-query attention, softmax in float32.

        softmax(q k^T / sqrt(H)) v, where `mask` is True for the keys a query may see

    Query head n reads key/value head n // (N / K).
    """
    B, T, N, H = q_BTNH.shape
    K = k_BSKH.shape[2]
    # Scaling q instead of the scores touches T*H numbers instead of T*S.
    q_BTKGH = (q_BTNH * (H**-0.5)).reshape(B, T, K, N // K, H)
    scores_BKGTS = jnp.einsum(
        "btkgh,bskh->bkgts", q_BTKGH, k_BSKH, preferred_element_type=jnp.float32
    )
    # A finite floor keeps rows without any visible key (padding) free of NaN.
    scores_BKGTS = jnp.where(mask_B1TS[:, :, None], scores_BKGTS, -1e30)
    weights_BKGTS = jax.nn.softmax(scores_BKGTS, axis=-1).astype(v_BSKH.dtype)
    context_BTKGH = jnp.einsum("bkgts,bskh->btkgh", weights_BKGTS, v_BSKH)
    return context_BTKGH.reshape(B, T, N, H)


def causal_mask(
    rows_T: Int[Array, " T"],
    length: int,
    row_ids_BT: Int[Array, "B T"] | None,
    segment_ids_BS: Int[Array, "B S"] | None,
) -> Bool[Array, "#B 1 T S"]:
    """True where a query may see a key: not after it, and in the same document.

    Args:
      rows_T: places of the queries in the sequence.
      length: S, keys in the sequence.
      row_ids_BT: documents of the queries; None = all are one.
      segment_ids_BS: documents of the keys.
    """
    mask_B1TS = (rows_T[:, None] >= jnp.arange(length)[None, :])[None, None]
    if row_ids_BT is not None and segment_ids_BS is not None:
        same = row_ids_BT[:, :, None] == segment_ids_BS[:, None, :]
        mask_B1TS = mask_B1TS & same[:, None]
    return mask_B1TS


def causal_by_scores(q_BTNH, k_BTKH, v_BTKH, segment_ids_BT):
    """Causal attention with the whole mask; the oracle of the others."""
    T = q_BTNH.shape[1]
    mask_B1TS = causal_mask(jnp.arange(T), T, segment_ids_BT, segment_ids_BT)
    return masked_attention(q_BTNH, k_BTKH, v_BTKH, mask_B1TS)
