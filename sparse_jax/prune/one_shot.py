"""One-shot pruning of a whole model: calibrate, solve and propagate block by block."""

import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from sparse_jax.models import Compute, LlamaConfig
from sparse_jax.prune.activations import Activations
from sparse_jax.prune.blockwise import (
    Blocks,
    ParamsBlocks,
    Progress,
    check_tokens,
    name_block,
    place_layer,
    stack_layers,
    take_layer,
    walk,
)
from sparse_jax.prune.config import FOUND, PruneConfig
from sparse_jax.prune.dense_stream import DenseStream
from sparse_jax.prune.finish_block import finish_block, merge_layer
from sparse_jax.prune.plan import LayerMasks, Plan, make_plan
from sparse_jax.prune.solve_block import PrunedBlock, Row, solve_block
from sparse_jax.prune.spread import spread_sparsity
from sparse_jax.quant import Grid
from sparse_jax.tree import from_paths, leaf_paths
from sparse_jax.types import InputError, Masks, Params

Store = Callable[[int, PrunedBlock], Params]
"""Keeps a block; returns what its matrices compute as they are kept, rounded, say."""


class PrunedModel(NamedTuple):
    """What `prune` returns.

    Attributes:
      params: rounded matrices lie on their grids, and are zero where they have
        outliers.
      masks: the same tree; None where nothing is pruned.
      rows: of the report.
      grids: of the rounded matrices, see `quant.Grids`.
      adapter: low-rank factors and outliers [L, ...] by leaf path; `adapters.merge`
        gives the dense weights that all compute together.
      input_scales: (path, layer) -> static scale of a matrix's inputs; empty where they
        are not rounded, or token by token.
    """

    params: Params
    masks: Masks
    rows: list[Row]
    grids: dict[tuple[str, int], Grid]
    adapter: dict[str, Array]
    input_scales: dict[tuple[str, int], float]


def prune(
    params: Params,
    masks: Masks | None,
    tokens: Int[Array | np.ndarray, "samples length"] | None,
    model_config: LlamaConfig,
    config: PruneConfig,
    compute: Compute = Compute(),
    progress: Progress | None = None,
) -> PrunedModel:
    """Prunes and rounds the linears of every decoder block of a model in memory.

    Each block is calibrated before it is pruned, and its pruned outputs are what the
    next block is calibrated on. Every shape compiles once, for all layers and all
    sparsities. `prune_directory` does the same with a model on disk.

    On the mesh that is set, calibration sequences are cut over its axes data and fsdp,
    the rows of the matrices that are solved over all its devices, and the results lie
    as `mesh.shardings` says. All its processes call this, and get the same.

    Args:
      params: the model.
      masks: masks that it has already, or None. With `config.nested` what they prune
        stays pruned, also where a rule now says dense; otherwise they are forgotten.
      tokens: calibration sequences; None only for magnitude, which then reports no
        relative error.
      model_config: architecture.
      config: what to do.
      compute: the activations' dtype.
      progress: called after every block as (done, total).

    Returns:
      The model, and rows with layer, path, pattern, sparsity, relative_error, damping
      (None where unused) and seconds (of the shared solve, split evenly). With
      `config.quantize` they hold, in bits per weight, bits (None in floats), extra_bits
      (what stands beside the matrix) and index_bits, and left_out, why a matrix that
      was to be rounded is not.

    Raises:
      InputError: before any work starts, for a rule, pattern, sparsity or tokens that
        do not fit the model; or for activations that are not finite.
    """
    pruned: list[PrunedBlock] = []
    leaves = leaf_paths(masks or {})
    prior = {path: mask for path, mask in leaves.items() if mask is not None}

    def store(index: int, block: PrunedBlock) -> Params:
        pruned.append(block)
        return merge_layer(block.params, block.adapter)

    prune_blocks(
        ParamsBlocks(params, model_config),
        lambda index: take_layer(prior, index),
        tokens,
        config,
        store,
        compute=compute,
        progress=progress,
    )
    return _stacked(params, pruned)


def _stacked(params: Params, pruned: list[PrunedBlock]) -> PrunedModel:
    """The model of pruned blocks, and of all that is not in blocks."""
    layers = stack_layers([{"layers": block.params} for block in pruned])
    new_masks = stack_layers([block.masks for block in pruned])
    return PrunedModel(
        {**params, **layers},
        from_paths(dict.fromkeys(leaf_paths(params)) | new_masks),
        [row for block in pruned for row in block.rows],
        _by_layer([block.grids for block in pruned]),
        stack_layers([block.adapter for block in pruned]),
        _by_layer([block.input_scales for block in pruned]),
    )


def _by_layer(layers: list[dict[str, Any]]) -> dict[tuple[str, int], Any]:
    return {
        (path, index): value
        for index, layer in enumerate(layers)
        for path, value in layer.items()
    }


def prune_blocks(
    blocks: Blocks,
    layer_masks: Callable[[int], LayerMasks],
    tokens: Int[Array | np.ndarray, "samples length"] | None,
    config: PruneConfig,
    store: Store,
    *,
    compute: Compute = Compute(),
    first: int = 0,
    done: Callable[[int], Params] | None = None,
    spool: pathlib.Path | None = None,
    log: pathlib.Path | None = None,
    progress: Progress | None = None,
) -> None:
    """Prunes a model whose blocks are read and kept one at a time.

    Args:
      blocks: the model.
      layer_masks: the masks that it has already, by layer; {} for a dense one.
      tokens: as for `prune`.
      config: what to do.
      store: called with every block when it is pruned.
      compute: the activations' dtype.
      first: blocks before this one are stored already.
      done: index -> what the matrices of such a block compute, as stored.
      spool: folder for the activations; None keeps them in memory.
      log: file that keeps the measurements for the allocation, for a resumed run.
      progress: called after every block.

    Raises:
      InputError: as `prune`.
    """
    plan = check(blocks, layer_masks, tokens, config)
    priors = layer_masks if config.nested else _dense
    options: dict[str, Any] = {"compute": compute, "spool": spool}
    options["batch_size"] = config.sequences_per_batch
    if config.allocation.kind != "uniform":
        before, progress = _halves(progress)
        options["progress"] = before
        plan = spread_sparsity(plan, blocks, priors, tokens, config, log, **options)

    stream = None
    if config.quantize is not None and config.quantize.tune is not None:
        stream = DenseStream(blocks, tokens, **options)  # pyrefly: ignore

    def prune_block(index: int, layer_params: Params, inputs: Activations) -> Params:
        pattern = plan.layers[index]
        masks = place_layer(priors(index))
        arguments = (layer_params, inputs, pattern, masks, blocks.config)
        with name_block(index):
            solved = solve_block(*arguments, config, plan.rounded[index])
            if config.quantize is not None:
                arguments = index, solved, inputs, stream, blocks.config
                solved = finish_block(*arguments, config.quantize)
        masks = _whole_masks(plan.masked, solved.params) | solved.masks
        rows = [{"layer": index} | row for row in solved.rows]
        return store(index, solved._replace(masks=masks, rows=rows))

    options["progress"] = progress
    walk(blocks, tokens, action=prune_block, first=first, done=done, **options)


def _halves(progress: Progress | None) -> tuple[Progress | None, Progress | None]:
    """Reports to the first and to the second half of what `progress` shows."""
    if progress is None:
        return None, None
    return (
        lambda done, total: progress(done, 2 * total),
        lambda done, total: progress(total + done, 2 * total),
    )


def check(
    blocks: Blocks,
    layer_masks: Callable[[int], LayerMasks],
    tokens: Int[Array | np.ndarray, "samples length"] | None,
    config: PruneConfig,
) -> Plan:
    """Checks everything that can be known before any work; arguments as above.

    Returns:
      What is to be pruned, with the same sparsity everywhere.

    Raises:
      InputError: a rule, pattern, sparsity, allocation or tokens that do not fit.
    """
    if tokens is not None:
        check_tokens(tokens, blocks.config)
    elif config.quantize is not None and config.quantize.reads_inputs is not None:
        raise InputError(
            f"quantize: {config.quantize.reads_inputs} needs calibration tokens; name "
            "a text with calibration"
        )
    elif config.solver != "magnitude" and config.pattern != FOUND:
        raise InputError(
            f"solver {config.solver!r} needs calibration tokens; name a text with "
            "calibration"
        )
    elif config.allocation.kind != "uniform":
        raise InputError(
            f"allocation {config.allocation.kind!r} needs calibration tokens; name a "
            "text with calibration"
        )
    priors = layer_masks if config.nested else _dense
    return make_plan(blocks.config, config, priors)


def _dense(index: int) -> LayerMasks:
    return {}


def _whole_masks(paths: list[str], layer_params: Params) -> LayerMasks:
    """All-True masks: of what is pruned in some layers, but not in this one."""
    leaves = leaf_paths({"layers": layer_params})
    return {path: jnp.ones_like(leaves[path], bool) for path in paths}
