"""Calibration: which text a block sees, and the Hessians of the inputs of its matrices.

Matrices that read the same activations share one Hessian: see `models.INPUTS`.
"""

import math
from collections.abc import Iterable
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int

from sparse_jax import mesh as mesh_lib
from sparse_jax.models import INPUTS, LlamaConfig, block
from sparse_jax.solvers import accumulate, symmetrize
from sparse_jax.types import InputError, Params


def sample_windows(
    stream: Int[np.ndarray, " tokens"], samples: int, length: int, seed: int
) -> Int[np.ndarray, "samples length"]:
    """Draws windows of `length` tokens at random places of a token stream.

    Starts differ as long as the stream has enough of them; windows may overlap.

    Raises:
      InputError: the stream is shorter than one window.

    Example:
      >>> sample_windows(np.arange(100), 2, 3, seed=0).shape
      (2, 3)
    """
    n_starts = len(stream) - length + 1
    if n_starts < 1:
        raise InputError(
            f"calibration text has {len(stream)} tokens, fewer than one sequence of "
            f"{length}; give more text or shorten prune.sample_length"
        )
    rng = np.random.default_rng(seed)
    starts = rng.choice(n_starts, samples, replace=n_starts < samples)
    return np.asarray(stream)[starts[:, None] + np.arange(length)]


def hessians(
    layer_params: Params,
    batches: Iterable[Float[Array, "_ T D"]],
    config: LlamaConfig,
    taps: tuple[str, ...] = tuple(INPUTS),
    samples: int | None = None,
) -> dict[str, Float[Array, "_ _"]]:
    """H = (2/n) X^T X of a block's taps, over batches of the block's inputs.

    On a mesh every device adds up the H of its own tokens over all batches, and at the
    end the sum over the devices is on all of them.

    Args:
      layer_params: `params["layers"]` at one layer.
      batches: outputs of the block before, at least one batch.
      config: architecture.
      taps: which inputs, of `models.INPUTS`.
      samples: how many sequences count, see `Activations.samples`; None = all.
    """
    widths = {
        "attention_in": config.d_model,
        "attention_out_in": config.n_heads * config.head_width,
        "mlp_in": config.d_model,
        "mlp_out_in": config.d_ff,
    }
    widths = {tap: widths[tap] for tap in taps}
    mesh = mesh_lib.current()
    if mesh.size > 1:
        return _hessians_on_mesh(layer_params, batches, config, widths, samples)
    total = {tap: jnp.zeros((width, width)) for tap, width in widths.items()}
    n_before = 0
    for x_BTD in batches:
        total = _accumulate(layer_params, x_BTD, total, float(n_before), config)
        n_before += x_BTD.shape[0]
    return {tap: _symmetrize(total.pop(tap)) for tap in taps}


@partial(jax.jit, static_argnames="config", donate_argnames="total")
def _accumulate(layer_params, x_BTD, total, n_before, config):
    _, taps = block(layer_params, x_BTD, config)
    return {tap: accumulate(h, n_before, taps[tap]) for tap, h in total.items()}


_symmetrize = jax.jit(symmetrize, donate_argnums=0)


def _hessians_on_mesh(
    layer_params, batches, config, widths, samples
) -> dict[str, jax.Array]:
    """`hessians`; `total` holds the part of every device, [devices, in, in]."""
    mesh, n_before = mesh_lib.current(), 0
    total: dict[str, Any] = {}
    for x_BTD in batches:
        cut = mesh_lib.BATCH, ("tensor",)
        if x_BTD.shape[1] % mesh.shape["tensor"]:
            cut = mesh_lib.BATCH, ()
        if not total:
            total = _zeros(mesh, cut, widths)
        n_added = x_BTD.shape[0]
        if samples is not None:
            n_added = min(n_added, samples - n_before)
        sizes = np.array([n_before, n_added], np.float32)
        total = _accumulate_parts(layer_params, x_BTD, total, sizes, config, cut)
        n_before += n_added
    replicated = NamedSharding(mesh, PartitionSpec())
    return {tap: _summed(replicated)(total.pop(tap)) for tap in widths}


def _axes(cut) -> tuple[str, ...]:
    """The axes of the mesh that tokens are cut over."""
    shape = jax.sharding.get_abstract_mesh().shape
    return tuple(axis for part in cut for axis in part if shape[axis] > 1)


def _by_part(axes) -> PartitionSpec:
    """A leading axis with an entry per part of the tokens, written as JAX does."""
    if not axes:
        return PartitionSpec()
    return PartitionSpec(axes if len(axes) > 1 else axes[0])


def _zeros(mesh, cut, widths):
    axes = _axes(cut)
    n_parts = math.prod(mesh.shape[axis] for axis in axes)
    sharding = NamedSharding(mesh, _by_part(axes))
    return {
        tap: jnp.zeros((n_parts, width, width), device=sharding)
        for tap, width in widths.items()
    }


@partial(jax.jit, static_argnames=("config", "cut"), donate_argnames="total")
def _accumulate_parts(layer_params, x_BTD, total, sizes, config, cut):
    _, taps = block(layer_params, x_BTD, config)
    counts_B = jnp.arange(x_BTD.shape[0]) < sizes[1]

    def add(part_1II, tap_BTI, sizes):
        return accumulate(part_1II[0], sizes[0], tap_BTI, sizes[1])[None]

    axes = _axes(cut)
    rows = PartitionSpec(*(tuple(a for a in part if a in axes) or None for part in cut))
    spec = _by_part(axes)
    add_parts = jax.shard_map(
        add,
        in_specs=(spec, rows, PartitionSpec()),
        out_specs=spec,
    )
    return {
        tap: add_parts(parts, jnp.where(counts_B[:, None, None], taps[tap], 0), sizes)
        for tap, parts in total.items()
    }


@cache
def _summed(sharding):
    return jax.jit(lambda parts: symmetrize(parts.sum(0)), out_shardings=sharding)
