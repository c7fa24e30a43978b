"""Exact selection of the lowest scores without a sort.

Sorting the scores of a matrix is an order of magnitude slower than counting them, so
thresholds are found by bisection on the bits of the scores: every pass counts how many
entries lie below a candidate and fixes one more bit of the answer.
"""

from functools import reduce
from math import gcd

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int, UInt32

_OCTAVE = 2**23  # keys of float32 between a power of two and the next


def order_bits(scores: Float[Array, "*shape"]) -> UInt32[Array, "*shape"]:
    """Maps float32 to unsigned integers that sort in the same order (-0.0 equals 0.0).

    Example:
      >>> bits = order_bits(jnp.array([-jnp.inf, -1.0, 0.0, 2.0]))
      >>> bool((bits[1:] > bits[:-1]).all())
      True
    """
    # Both zeros become 0.0; IEEE floats then sort as sign-magnitude integers. Adding
    # 0.0 would do the same, if XLA did not take it for nothing.
    scores = jnp.where(scores == 0, 0.0, scores.astype(jnp.float32))
    bits = lax.bitcast_convert_type(scores, jnp.uint32)
    return jnp.where(bits >> 31 == 1, ~bits, bits | jnp.uint32(1 << 31))


def value_at_rank(
    keys: UInt32[Array, "*shape"], rank: Int[Array, ""] | int, n_bits: int = 32
) -> UInt32[Array, ""]:
    """Returns `sort(keys.ravel())[rank]` by bisection over `n_bits` bits.

    Args:
      keys: unsigned integers below `2**n_bits`.
      rank: 0-based rank; -1 gives 0, a rank past the end gives the largest integer.
      n_bits: how many low bits of the keys are in use.

    Example:
      >>> int(value_at_rank(jnp.array([7, 3, 5], jnp.uint32), 1))
      5
    """

    def fix_bit(i, value):
        candidate = value | (jnp.uint32(1) << (n_bits - 1 - i).astype(jnp.uint32))
        below = jnp.sum(keys < candidate, dtype=jnp.int32)
        return jnp.where(below <= rank, candidate, value)

    return lax.fori_loop(0, n_bits, fix_bit, jnp.uint32(0))


def cut(
    keys: UInt32[Array, "*shape"], n: Int[Array, ""] | int
) -> tuple[UInt32[Array, ""], Int[Array, ""]]:
    """Finds the bound below which `n` keys lie, or the largest with fewer below it.

    Every pass counts the keys below a candidate between two bounds of the answer: the
    middle, and once the exponent of the scores is known, where a straight line through
    the counts at both ends would put it.

    Returns:
      (bound, number of keys below it); where that is less than `n`, more keys than are
      missing equal the bound.

    Example:
      >>> bound, below = cut(jnp.array([[7, 3, 5, 5]], jnp.uint32), 2)
      >>> int(bound), int(below)
      (5, 1)
    """

    def unfinished(state):
        low, n_low, high, _ = state
        return (high - low > 1) & (n_low != n)

    def narrow(state):
        low, n_low, high, n_high = state
        width = high - low
        share = (n - n_low) / (n_high - n_low)
        step = width * (share * (15 / 16) + 1 / 32)  # never too close to either end
        step = jnp.clip(step.astype(jnp.uint32), 1, width - 1)
        candidate = low + jnp.where(width > _OCTAVE, width // 2, step)
        count = _count_below(keys, candidate)
        fits = count <= n
        low, n_low = jnp.where(fits, candidate, low), jnp.where(fits, count, n_low)
        high, n_high = jnp.where(fits, high, candidate), jnp.where(fits, n_high, count)
        return low, n_low, high, n_high

    top = jnp.uint32(0xFFFFFFFF)
    state = (jnp.uint32(0), jnp.int32(0), top, jnp.int32(keys.size))
    return lax.while_loop(unfinished, narrow, state)[:2]


def _count_below(keys, bound):
    """Counts keys; fast because XLA makes one vectorised loop over the parts."""
    if jax.sharding.get_abstract_mesh().size > 1:
        return jnp.sum(keys < bound, dtype=jnp.int32)  # parts would cut across devices
    n_parts = gcd(len(keys), 16)
    parts = [(part < bound).astype(jnp.int32) for part in jnp.split(keys, n_parts)]
    below = reduce(jnp.add, parts)
    # Sums of float32 are vectorised, those of integers are not; a row's is exact.
    exact = n_parts * below.shape[-1] <= 2**24
    rows = jnp.sum(below.astype(jnp.float32 if exact else jnp.int32), -1)
    return jnp.sum(rows.astype(jnp.int32))


def keep_highest(
    scores: Float[Array, "*shape"], n_dropped: Int[Array, ""] | int
) -> Bool[Array, "*shape"]:
    """Drops exactly the `n_dropped` lowest scores of the whole array.

    Of equal scores the one with the lowest flat (row-major) index is kept.

    Args:
      scores: one selection problem of any shape; infinities are allowed.
      n_dropped: how many entries to drop; may be traced.

    Returns:
      True where the entry is kept.

    Example:
      >>> keep_highest(jnp.array([1.0, 3.0, 1.0, 2.0]), 1).tolist()
      [True, True, False, True]
    """
    keys = order_bits(scores)
    bound, n_below = cut(keys, n_dropped)
    n_ties = n_dropped - n_below

    def drop_last_ties():
        from_end = jnp.arange(keys.size - 1, -1, -1, dtype=jnp.uint32)
        position = jnp.where(keys == bound, from_end.reshape(keys.shape), keys.size)
        last = value_at_rank(position, n_ties - 1, keys.size.bit_length())
        return position <= last

    dropped = lax.cond(n_ties > 0, drop_last_ties, lambda: jnp.zeros(keys.shape, bool))
    return (keys >= bound) & ~dropped


def keep_per_group(
    scores: Float[Array, "*lead m"], n_kept: Int[Array, ""] | int
) -> Bool[Array, "*lead m"]:
    """Keeps the `n_kept` highest scores along the last axis; ties keep lower indices.

    Example:
      >>> keep_per_group(jnp.array([[1.0, 2.0, 2.0, 2.0]]), 2).tolist()
      [[False, True, True, False]]
    """
    m = scores.shape[-1]
    index = jnp.arange(m)

    def count_better(j, rank):
        rival = scores[..., j, None]
        return rank + ((rival > scores) | ((rival == scores) & (j < index)))

    rank = lax.fori_loop(0, m, count_better, jnp.zeros(scores.shape, jnp.int32))
    return rank < n_kept


def quotas(
    n_pruned: int, sizes: np.ndarray, already_pruned: np.ndarray | None = None
) -> np.ndarray:
    """Splits a count of pruned entries over parts so that it adds up exactly.

    Every part prunes the same fraction of what it still keeps, by cumulative rounding:
    with survivors s_i = sizes_i - already_i, S_i = s_1 + ... + s_i and
    E = n_pruned - sum(already),

        quota_i = already_i + floor(E S_i / S) - floor(E S_{i-1} / S).

    Args:
      n_pruned: total to prune, at least `sum(already_pruned)`.
      sizes: entries of each part.
      already_pruned: entries of each part that are pruned already; None for none.

    Returns:
      int32 array of the shape of `sizes`.

    Example:
      >>> quotas(5, np.array([4, 4, 2])).tolist()
      [2, 2, 1]
    """
    sizes = np.asarray(sizes, np.int64)
    already = np.zeros_like(sizes) if already_pruned is None else already_pruned
    already = np.asarray(already, np.int64)
    survivors = np.cumsum(sizes - already)
    extra = n_pruned - int(already.sum())
    # Python integers: the product passes 2**63 for the largest matrices.
    edges = [extra * int(s) // max(int(survivors[-1]), 1) for s in survivors]
    return (already + np.diff([0, *edges])).astype(np.int32)


def is_concrete(*arrays: object) -> bool:
    """Tells whether none of the arrays is a tracer, so that values can be checked."""
    return not any(isinstance(array, jax.core.Tracer) for array in arrays)
