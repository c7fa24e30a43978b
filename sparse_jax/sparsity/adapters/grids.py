"""Integer grids that train beside their kernels: scales and zero points as leaves."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from sparse_jax.quant import (
    Grid,
    GridConfig,
    Grids,
    fake_quantize,
    fit,
    from_codes,
    round_to_grid,
    search,
    to_codes,
)
from sparse_jax.quant.grid import storable
from sparse_jax.sparsity.adapters.initial import placed, with_leaves
from sparse_jax.sparsity.adapters.leaves import KERNEL, QUANT_SCALE, QUANT_ZERO, split
from sparse_jax.sparsity.adapters.quant_config import QuantTrainConfig
from sparse_jax.tree import from_paths, leaf_paths
from sparse_jax.types import InputError, Masks, Params


def add_grids(
    params: Params, masks: Masks, config: QuantTrainConfig, parent: Grids | None = None
) -> tuple[Params, Masks]:
    """Adds scales, and zero points where asymmetric, beside the matrices to quantise.

    Beside each stand `quant_scale` and `quant_zero`, [*L, groups, out]. Where only
    those train, the kernel becomes its codes, int8.

    Args:
      params: weights; on a mesh, the new leaves lie as `mesh.SHARDING_RULES` say.
      masks: the tree of params, True = kept; the grids fit what is kept.
      config: what to add.
      parent: the grids to start with, where `config.start` says so.

    Returns:
      Params and masks with the new leaves.

    Raises:
      InputError: see `QuantTrainConfig.matrices`; or the parent has no grids, not in
        all layers, or others than the config's.

    Example:
      >>> config = QuantTrainConfig(grid=GridConfig(bits=4, group=0), start="fit")
      >>> tree = {"layers": {"up": {"kernel": jnp.array([[[0.7], [-0.2]]])}}}
      >>> params, _ = add_grids(tree, {"layers": {"up": {"kernel": None}}}, config)
      >>> params["layers"]["up"]["quant_scale"].shape
      (1, 1, 1)
    """
    if config.start == "parent":
        found = _parents(params, config.grid, parent or {})
        nodes = {path.removesuffix(f"/{KERNEL}") for path in found}
        kernels = {n: leaf_paths(params)[f"{n}/{KERNEL}"] for n in sorted(nodes)}
    else:
        found = {}
        kernels = config.matrices(params)
    mask_leaves = leaf_paths(masks)
    kept = {node: mask_leaves.get(f"{node}/{KERNEL}") for node in kernels}

    def make(kernels: dict, kept: dict, found: dict) -> dict[str, jax.Array]:
        made = {}
        for node, kernel in kernels.items():
            grid = found.get(f"{node}/{KERNEL}")
            if grid is None:
                fitted = search if config.start == "search" else fit
                grid = fitted(kernel, config.grid, kept[node], axis=-2)
            made[f"{node}/{QUANT_SCALE}"] = grid.scales
            if grid.zeros is not None:
                made[f"{node}/{QUANT_ZERO}"] = grid.zeros
            if config.train == "scales":
                mask = kept[node]
                kernel = kernel if mask is None else jnp.where(mask, kernel, 0)
                made[f"{node}/{KERNEL}"] = to_codes(kernel, grid, axis=-2)
        return made

    return with_leaves(params, masks, placed(make, kernels, kept, found))


def _parents(params: Params, config: GridConfig, grids: Grids) -> dict[str, Grid]:
    """The grids of every matrix that has any, its layers stacked."""
    if not grids:
        raise InputError(
            "quantize.start 'parent' takes over the parent's grids, but it has none; "
            "quantise it first, or set start to 'search'"
        )
    leaves, found = leaf_paths(params), {}
    for path in sorted({path for path, _ in grids}):
        layers = range(leaves[path].shape[0])
        if missing := [layer for layer in layers if (path, layer) not in grids]:
            raise InputError(
                f"quantize.start 'parent': {path} is quantised, but not in layer "
                f"{missing[0]}; quantise it in all layers, or in none"
            )
        for layer in layers:
            if grids[path, layer].config != config:
                raise InputError(
                    f"quantize.grid is {config}, but the parent's grid of {path} in "
                    f"layer {layer} is {grids[path, layer].config}; train on that one"
                )
        stacked = [grids[path, layer] for layer in layers]
        found[path] = jax.tree.map(lambda *leaves: jnp.stack(leaves), *stacked)
    return found


def grid_of(leaves: Mapping[str, Any], node: str, config: GridConfig) -> Grid:
    """The grid that stands beside a kernel, as it trains."""
    return Grid(
        config=config,
        scales=leaves[f"{node}/{QUANT_SCALE}"],
        zeros=leaves.get(f"{node}/{QUANT_ZERO}"),
    )


def rounded(
    kernel: Array,
    grid: Grid,
    mask: Bool[Array, "..."] | None,
    *,
    refit: bool,
    moving: bool,
) -> Array:
    """What a kernel is on its grid, differentiable in both.

    Args:
      kernel: [*L, in, out]; int8 are codes, which stay.
      grid: beside it.
      mask: True = kept.
      refit: the grid follows the weights.
      moving: pruned weights have a gradient, too, but the scales learn from what is
        kept alone.
    """
    if kernel.dtype == jnp.int8:
        return from_codes(kernel, storable(grid), axis=-2)
    if refit:
        fitted = fit(jax.lax.stop_gradient(kernel), grid.config, mask, axis=-2)
        return fake_quantize(kernel, fitted)
    if mask is None or not moving:
        return fake_quantize(kernel, grid)
    constant = jax.lax.stop_gradient(grid)
    return jnp.where(mask, fake_quantize(kernel, grid), fake_quantize(kernel, constant))


def fold_grids(
    params: Params, masks: Masks, config: GridConfig, *, refit: bool = False
) -> tuple[Params, Masks, Grids]:
    """Rounds the kernels to the grids beside them, exactly; zeros stay zeros.

    Args:
      params: weights or codes, and their grids.
      masks: True = kept, None = dense.
      config: of all grids.
      refit: the scales are those that fit the weights.

    Returns:
      Params and masks without the scales and zero points, which compute what those
      with them do, and the grids. A group of which nothing is kept has scale 0.
    """
    leaves, mask_leaves = leaf_paths(params), leaf_paths(masks)
    nodes = [
        path.removesuffix(f"/{QUANT_SCALE}")
        for path in split(params)[1]
        if path.endswith(f"/{QUANT_SCALE}")
    ]
    grids = {}
    for node in nodes:
        path = f"{node}/{KERNEL}"
        grid = grid_of(leaves, node, config)
        leaves[path], grid = settle(leaves[path], grid, mask_leaves[path], refit=refit)
        for layer in range(leaves[path].shape[0]):
            grids[path, layer] = _take(grid, layer)
    gone = {f"{node}/{name}" for node in nodes for name in (QUANT_SCALE, QUANT_ZERO)}
    return (
        from_paths({path: leaf for path, leaf in leaves.items() if path not in gone}),
        from_paths({path: m for path, m in mask_leaves.items() if path not in gone}),
        grids,
    )


@functools.partial(jax.jit, static_argnames="refit")
def settle(
    kernel: Array, grid: Grid, mask: Bool[Array, "..."] | None, *, refit: bool = False
) -> tuple[Array, Grid]:
    """A kernel exactly on its grid as it will be stored, zeros in place, and that grid.

    Args:
      kernel: [*L, in, out]; int8 are codes.
      grid: as it trained.
      mask: True = kept; a group of which nothing is kept gets scale 0.
      refit: the grid is the one that fits the weights.
    """
    if refit:
        grid = fit(kernel, grid.config, mask, axis=-2)
    grid = storable(grid)
    if kernel.dtype == jnp.int8:
        weights = from_codes(kernel, grid, axis=-2)
    else:
        weights = round_to_grid(kernel, grid, axis=-2)
    if mask is None:
        return weights, grid
    alive = fit(jnp.ones(kernel.shape), grid.config, mask, axis=-2).scales > 0
    grid = dataclasses.replace(grid, scales=jnp.where(alive, grid.scales, 0))
    return jnp.where(mask, weights, 0), grid


@jax.jit
def _take(grid: Grid, layer: int | Int[Array, ""]) -> Grid:
    return jax.tree.map(lambda leaf: leaf[layer], grid)
