"""Rows of a table of embeddings, in the form in which a packed model holds it.

A tied table is stored once, for the head: in panels of 16 rows, side by side.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from sparse_jax.kernels import PANEL, Packed

TABLES = ("dense_float32", "dense_bfloat16")
"""Storage types whose rows can be looked up."""


def look_up(
    table: Packed | jax.Array, ids: Int[Array | np.ndarray, "*B"]
) -> Float[Array, "*B D"]:
    """The embeddings of token ids, in float32.

    A row that is gathered from its panel costs the cache lines of 16; for one token,
    that is little beside the matrices.

    Args:
      table: [V, D], or a `Packed` of one of the types `TABLES`.
      ids: token ids; every one in [0, V).

    Example:
      >>> from sparse_jax.kernels import pack
      >>> table = pack("dense_float32", np.arange(12, dtype=np.float32).reshape(4, 3))
      >>> look_up(table, jnp.array([2])).tolist()
      [[6.0, 7.0, 8.0]]
    """
    ids = jnp.asarray(ids)
    if not isinstance(table, Packed):
        return table[ids].astype(jnp.float32)
    # [panels, D, 16] or, for pairs of bfloat16, [panels, ceil(D / 2), 16, 2]; indices
    # on both sides of a slice put their own dimensions first.
    values = jnp.asarray(table.arrays["values"])
    rows = values[ids // PANEL, :, ids % PANEL]
    rows_BD = rows.reshape(*ids.shape, -1)[..., : table.shape[1]]
    return rows_BD.astype(jnp.float32)


def take_rows(leaf: Packed, start: int, stop: int) -> Float[np.ndarray, "rows D"]:
    """The rows [start, stop) of a dense type, unpacked, whose arrays are by panels.

    Example:
      >>> from sparse_jax.kernels import pack
      >>> table = pack("dense_float32", np.arange(60, dtype=np.float32).reshape(20, 3))
      >>> take_rows(table, 17, 18).tolist()
      [[51.0, 52.0, 53.0]]
    """
    first, last = start // PANEL, -(-stop // PANEL)
    arrays = {name: np.asarray(a)[first:last] for name, a in leaf.arrays.items()}
    n_rows = min(last * PANEL, leaf.shape[0]) - first * PANEL
    part = Packed(format=leaf.format, shape=(n_rows, leaf.shape[1]), arrays=arrays)
    return part.unpack()[start - first * PANEL : stop - first * PANEL]
