"""Causal attention on TPU by JAX's Pallas kernel "splash" (sparse flash attention).

Blocks of keys that no query of a block may see are skipped. On a mesh every device
runs the kernel on its own rows and heads.
"""

from typing import Any

import jax
from jax.experimental.pallas.ops.tpu import splash_attention as splash
from jax.sharding import PartitionSpec as P

from sparse_jax import mesh as mesh_lib
from sparse_jax.types import InputError

_LARGEST = 512  # queries or keys of a block: its float32 scores take 1 MiB of 16
_LANES = 128


def causal_by_splash(q_BTNH, k_BTKH, v_BTKH, segment_ids_BT, *, interpret=False):
    """Causal attention; arguments and result as of `causal_attention`.

    `interpret` runs the kernel in JAX's interpreter, for tests without a TPU.

    Raises:
      InputError: T is not a multiple of 128.
    """
    T = q_BTNH.shape[1]
    if T % _LANES:
        raise InputError(
            f"compute.attention: 'splash' needs sequences of a multiple of {_LANES} "
            f"tokens, found {T}; change the length, or use 'blockwise'"
        )

    def attend(q_BTNH, k_BTKH, v_BTKH, segment_ids_BT):
        kernel = _kernel(T, q_BTNH.shape[2], interpret)
        q_BNTH = (q_BTNH * (q_BTNH.shape[-1] ** -0.5)).swapaxes(1, 2)
        k_BKTH, v_BKTH = k_BTKH.swapaxes(1, 2), v_BTKH.swapaxes(1, 2)
        ids = None
        if segment_ids_BT is not None:
            ids = splash.SegmentIds(segment_ids_BT, segment_ids_BT)
        context_BNTH: Any = jax.vmap(kernel)(q_BNTH, k_BKTH, v_BKTH, ids)
        return context_BNTH.swapaxes(1, 2)

    heads, rows = P(mesh_lib.BATCH, None, "tensor", None), P(mesh_lib.BATCH, None)
    arguments = (q_BTNH, k_BTKH, v_BTKH, segment_ids_BT)
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return attend(*arguments)
    # XLA cannot divide a Pallas call by itself.
    specs = (heads, heads, heads, None if segment_ids_BT is None else rows)
    divided = jax.shard_map(attend, in_specs=specs, out_specs=heads, check_vma=False)
    return divided(*arguments)


def _kernel(length: int, heads: int, interpret: bool):
    size = next(n for n in range(_LARGEST, 0, -_LANES) if length % n == 0)
    sizes = splash.BlockSizes(
        block_q=size,
        block_kv=size,
        block_kv_compute=size,
        block_q_dkv=size,
        block_kv_dkv=size,
        block_kv_dkv_compute=size,
        block_q_dq=size,
        block_kv_dq=size,
    )
    mask = splash.MultiHeadMask([splash.CausalMask((length, length))] * heads)
    return splash.make_splash_mha(
        mask, block_sizes=sizes, head_shards=1, q_seq_shards=1, interpret=interpret
    )
