"""Causal attention in blocks of queries: T x 256 scores at a time, on any backend.

The backward pass computes a block's scores again instead of keeping them. Keys behind
the block are multiplied and masked, as by the definition: it saves memory, not work.
"""

import jax
import jax.numpy as jnp

from sparse_jax.kernels.attention.scores import causal_mask, masked_attention

BLOCK = 256  # queries


def causal_in_blocks(q_BTNH, k_BTKH, v_BTKH, segment_ids_BT):
    """Causal attention; arguments and result as of `causal_attention`."""
    B, T, N, H = q_BTNH.shape
    size = next(n for n in range(min(BLOCK, T), 0, -1) if T % n == 0)

    def cut(x):
        return jnp.moveaxis(x.reshape(B, T // size, size, *x.shape[2:]), 1, 0)

    @jax.checkpoint
    def block(inputs):
        rows_C, q_BCNH, ids_BC = inputs
        mask_B1CS = causal_mask(rows_C, T, ids_BC, segment_ids_BT)
        return masked_attention(q_BCNH, k_BTKH, v_BTKH, mask_B1CS)

    rows = jnp.arange(T).reshape(-1, size)
    ids = None if segment_ids_BT is None else cut(segment_ids_BT)
    context = jax.lax.map(block, (rows, cut(q_BTNH), ids))
    return jnp.moveaxis(context, 0, 1).reshape(B, T, N, H)
