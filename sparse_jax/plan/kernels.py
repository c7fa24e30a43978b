"""Compiles the project's Pallas TPU kernels for a slice that is not there."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from sparse_jax.kernels.attention import causal_attention
from sparse_jax.kernels.weight_stream.pallas import stream_product
from sparse_jax.plan import compiled
from sparse_jax.plan.machines import Machine


def compile_kernels(machine: Machine) -> dict[str, float]:
    """Compiles every kernel, forward and backward, for one device of a slice.

    Returns:
      Seconds by name.
    """
    device = compiled.devices(machine)[0]
    return {
        name: compiled.compile_function(function, arguments, device)
        for name, (function, arguments) in _kernels().items()
    }


def _kernels() -> dict[str, tuple[Callable, tuple[Any, ...]]]:
    """Functions and the shapes of their arguments, at the sizes of a 7B model."""
    heads = jax.ShapeDtypeStruct((1, 4096, 32, 128), jnp.bfloat16)
    attend = functools.partial(causal_attention, implementation="splash")

    def attention_gradient(q, k, v):
        total = lambda *qkv: attend(*qkv).astype(jnp.float32).sum()  # noqa: E731
        return jax.grad(total, argnums=(0, 1, 2))(q, k, v)

    return {
        "attention/splash": (attend, (heads, heads, heads)),
        "attention/splash gradient": (attention_gradient, (heads, heads, heads)),
        "weight_stream/product": _stream(gradient=False),
        "weight_stream/weight gradient": _stream(gradient=True),
    }


def _stream(*, gradient: bool) -> tuple[Callable, tuple[Any, ...]]:
    """A stream of 2 blocks of 256 rows on 2 rows of 4 elements."""
    elements, columns, blocks, rows, words, tokens = 2, 4, 2, 256, 4096, 128
    shape = jax.ShapeDtypeStruct
    dy = shape((elements, blocks, rows, tokens), jnp.float32) if gradient else None
    arguments = (
        shape((elements, columns, 64, tokens), jnp.float32),
        dy,
        shape((blocks, words), jnp.float32),
        shape((blocks, words), jnp.int32),
        shape((blocks, rows + 1), jnp.int32),
        shape((elements, 5), jnp.int32),
    )
    product = functools.partial(
        stream_product, n_rows=blocks * rows, slots=64, interpret=False
    )
    return product, arguments
