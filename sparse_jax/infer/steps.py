"""The two compiled functions of the engine: reading a prompt, and reading a token.

Both are compiled once for every batch size and cache capacity, prefill also for every
bucket of lengths. All weights are their arguments, none a constant.
"""

import functools

import jax
from jaxtyping import Array, Float, Int32

from sparse_jax import ops
from sparse_jax.io import look_up
from sparse_jax.models import decode
from sparse_jax.models.cache import Cache
from sparse_jax.models.config import LlamaConfig
from sparse_jax.types import Params

BUCKETS = (16, 32, 64, 128, 256)
"""Tokens of a prompt that are read at a time; longer prompts in several pieces."""


@functools.partial(jax.jit, static_argnames="config", donate_argnames="cache")
def prefill(
    params: Params,
    cache: Cache,
    tokens_BT: Int32[Array, "B T"],
    counts_B: Int32[Array, " B"],
    ends_B: Int32[Array, " B"],
    config: LlamaConfig,
) -> tuple[Float[Array, "B V"], Cache]:
    """Reads a piece of every prompt.

    Args:
      params: of a `PackedModel`.
      cache: what was read before; donated.
      tokens_BT: the piece, in each row from the left.
      counts_B: its length in each row, which may be 0.
      ends_B: length of each whole prompt.
      config: architecture.

    Returns:
      Logits of the token after each row's piece, and the cache.
    """
    return _advance(params, cache, tokens_BT, counts_B, ends_B, config)


@functools.partial(jax.jit, static_argnames="config", donate_argnames="cache")
def step(
    params: Params,
    cache: Cache,
    tokens_B: Int32[Array, " B"],
    counts_B: Int32[Array, " B"],
    config: LlamaConfig,
) -> tuple[Float[Array, "B V"], Cache]:
    """Reads one token of every row; arguments and results as of `prefill`."""
    ends_B = cache.lengths + counts_B
    return _advance(params, cache, tokens_B[:, None], counts_B, ends_B, config)


def _advance(
    params: Params,
    cache: Cache,
    tokens_BT: Array,
    counts_B: Array,
    ends_B: Array,
    config: LlamaConfig,
) -> tuple[Array, Cache]:
    x_BTD = look_up(params["embed"]["embedding"], tokens_BT)
    x_BD, cache = decode.extend(
        params, x_BTD, cache, config, counts=counts_B, ends=ends_B
    )
    return ops.dot(x_BD, params["lm_head"]["kernel"]), cache


def bucket_for(length: int) -> int:
    """The smallest bucket that holds `length` tokens, or the largest there is.

    Example:
      >>> [bucket_for(n) for n in (1, 17, 1000)]
      [16, 32, 256]
    """
    return next((size for size in BUCKETS if size >= length), BUCKETS[-1])
