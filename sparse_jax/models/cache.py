"""Keys and values of the tokens that a model has read, for decoding.

Layers lie apart, so that a step reads each one where it is: a slice of one array for
all layers would be copied. Keys are [B, K, S, H] and values [B, K, H, S], which puts
the dimension that attention sums over last: on CPU a step then reads them as fast as
memory allows, 8 to 25 times faster than it reads [B, S, K, H]. S is the capacity.
"""

import functools
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from sparse_jax.models.config import LlamaConfig
from sparse_jax.types import Tree

SMALLEST = 64  # tokens


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Cache:
    """What is kept of a batch of sequences; a pytree.

    Attributes:
      keys: of each layer, rotated, [B, K, S, H].
      values: of each layer, [B, K, H, S].
      lengths: int32 [B], tokens that each row holds. What lies behind them is never
        seen, so that a row is shortened by setting its length.
    """

    # Annotated as trees: transformations put shapes and flags there, too.
    keys: Tree
    values: Tree
    lengths: Tree

    @property
    def capacity(self) -> int:
        """Tokens for which there is room in each row."""
        return self.keys[0].shape[2]

    @property
    def nbytes(self) -> int:
        """Bytes of all keys and values."""
        return sum(array.nbytes for array in (*self.keys, *self.values))

    def layer(self, index: int) -> "LayerCache":
        """The part of one layer."""
        return LayerCache(self.keys[index], self.values[index], self.lengths)


@dataclass(frozen=True)
class LayerCache:
    """The cache of one layer: `keys_BKSH`, `values_BKHS` and `lengths_B`."""

    keys_BKSH: Tree
    values_BKHS: Tree
    lengths_B: Tree

    def append(
        self, k_BTKH: Float[Array, "B T K H"], v_BTKH: Float[Array, "B T K H"]
    ) -> "LayerCache":
        """Puts new tokens behind each row's length; those without room are dropped."""
        B, T, K, _ = k_BTKH.shape
        row_B11, head_1K1 = jnp.arange(B)[:, None, None], jnp.arange(K)[None, :, None]
        place_B1T = (self.lengths_B[:, None] + jnp.arange(T))[:, None]
        k_BKTH, v_BKTH = k_BTKH.swapaxes(1, 2), v_BTKH.swapaxes(1, 2)
        # Heads are indexed, too: XLA makes another operation of a scatter with a single
        # index, for which it copies the whole cache several times.
        options = {"mode": "drop", "unique_indices": True}
        return LayerCache(
            self.keys_BKSH.at[row_B11, head_1K1, place_B1T].set(k_BKTH, **options),
            self.values_BKHS.at[row_B11, head_1K1, :, place_B1T].set(v_BKTH, **options),
            self.lengths_B,
        )

    def read(self) -> tuple[Float[Array, "B S K H"], Float[Array, "B S K H"]]:
        """Keys and values as attention takes them; XLA moves nothing for it."""
        keys, values = self.keys_BKSH, self.values_BKHS
        return keys.transpose(0, 2, 1, 3), values.transpose(0, 3, 1, 2)


def capacity_for(length: int, config: LlamaConfig) -> int:
    """The capacity of a cache for `length` tokens: a power of two, or the context.

    Few sizes mean few compilations.

    Example:
      >>> config = LlamaConfig(
      ...     vocab_size=4, d_model=2, d_ff=2, n_layers=1, n_heads=1, max_seq_len=500)
      >>> [capacity_for(n, config) for n in (1, 65, 300)]
      [64, 128, 500]
    """
    power = 1 << (max(length, SMALLEST) - 1).bit_length()
    return min(power, config.context)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def empty(config: LlamaConfig, batch: int, capacity: int) -> Cache:
    """A cache of `batch` rows that hold nothing."""
    K, H = config.kv_heads, config.head_width
    return Cache(
        keys=tuple(jnp.zeros((batch, K, capacity, H)) for _ in range(config.n_layers)),
        values=tuple(
            jnp.zeros((batch, K, H, capacity)) for _ in range(config.n_layers)
        ),
        lengths=jnp.zeros(batch, jnp.int32),
    )


def grow(cache: Cache, capacity: int) -> Cache:
    """The same tokens with room for more."""
    more = capacity - cache.capacity
    if more <= 0:
        return cache
    pad_keys = ((0, 0), (0, 0), (0, more), (0, 0))
    pad_values = ((0, 0), (0, 0), (0, 0), (0, more))
    return Cache(
        keys=tuple(jnp.pad(k, pad_keys) for k in cache.keys),
        values=tuple(jnp.pad(v, pad_values) for v in cache.values),
        lengths=cache.lengths,
    )


def with_lengths(cache: Cache, lengths: Int[np.ndarray, " B"]) -> Cache:
    """The same cache, of which each row holds so many tokens."""
    return Cache(
        cache.keys, cache.values, jax.device_put(np.asarray(lengths, np.int32))
    )


def take(cache: Cache, rows: Int[np.ndarray, " B"]) -> Cache:
    """Some rows of a cache."""
    return jax.tree.map(lambda array: array[rows], cache)


@functools.partial(jax.jit, donate_argnums=0)
def put(cache: Cache, rows: Int[Array | np.ndarray, " B"], other: Cache) -> Cache:
    """Replaces rows by those of another cache of this capacity; it is donated.

    Args:
      cache: where they go.
      rows: the place of each row of `other`; one that is not in the cache leaves it
        out.
      other: where they come from.
    """
    return jax.tree.map(
        lambda old, new: old.at[rows].set(new, mode="drop"), cache, other
    )
