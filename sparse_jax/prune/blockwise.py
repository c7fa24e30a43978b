"""Walks a model block by block; each block sees the new outputs of those before it."""

import contextlib
import pathlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Float, Int

from sparse_jax import mesh as mesh_lib
from sparse_jax.models import Compute, LlamaConfig, block
from sparse_jax.prune.activations import Activations, in_batches
from sparse_jax.types import InputError, Params, Tree

Action = Callable[[int, Params, Activations], Params]
"""(index, layer params, inputs) -> new layer params: solve, train, measure ...

The dict of layer params is the action's own: emptied, it frees the old weights.
"""

LayerMasks = dict[str, Bool[Array, "in out"]]
"""Masks of one layer by path in the whole model, "layers/attention/q/kernel"."""

Progress = Callable[[int, int], None]
"""Called as (blocks done, blocks in all)."""


@runtime_checkable
class Blocks(Protocol):
    """A model that gives one decoder block at a time, wherever it is kept."""

    @property
    def config(self) -> LlamaConfig:
        """The architecture."""
        ...

    def embed(
        self, ids: Int[np.ndarray, "*shape"]
    ) -> Float[Array | np.ndarray, "*shape D"]:
        """The embeddings of token ids, float32."""
        ...

    def layer(self, index: int) -> Params:
        """`params["layers"]` at one layer, in a dict of its own."""
        ...


@dataclass(frozen=True)
class ParamsBlocks:
    """The blocks of a model in memory.

    Attributes:
      params: the whole model.
      config: its architecture.
    """

    params: Params
    config: LlamaConfig

    def embed(
        self, ids: Int[np.ndarray, "*shape"]
    ) -> Float[Array | np.ndarray, "*shape D"]:
        """The embeddings of token ids, float32."""
        return _look_up(self.params["embed"]["embedding"], ids)

    def layer(self, index: int) -> Params:
        """`params["layers"]` at one layer."""
        return take_layer(self.params["layers"], index)


def walk(
    blocks: Blocks,
    tokens: Int[Array | np.ndarray, "samples length"] | None,
    compute: Compute,
    action: Action | None,
    *,
    first: int = 0,
    done: Callable[[int], Params] | None = None,
    batch_size: int = 16,
    spool: pathlib.Path | None = None,
    progress: Progress | None = None,
) -> Activations:
    """Calls `action` on every decoder block, first to last, and carries tokens through.

    One block's weights are in memory at a time, and the activations that enter it: the
    tokens embedded, then carried through the NEW blocks, so that later blocks see, and
    can make up for, the errors of earlier ones.

    Args:
      blocks: the model.
      tokens: sequences; None gives every action empty inputs.
      compute: the activations' dtype.
      action: called once per block; None changes nothing.
      first: blocks before this one have been walked already, by an earlier process.
      done: index -> the new params of a block before `first`; None = the model's own.
      batch_size: sequences that go through a block at a time; on a mesh it is rounded
        up to what the batch axes divide, and the last batch is filled with sequences
        that do not count, see `Activations.samples`.
      spool: folder for the activations; None keeps them in memory.
      progress: called after every block.

    Returns:
      The outputs of the last block.

    Raises:
      InputError: the tokens do not fit the model.
    """
    config = blocks.config
    inputs = embed_tokens(blocks, tokens, compute, batch_size=batch_size, spool=spool)
    for index in range(config.n_layers):
        if index < first:
            new_layer = (done or blocks.layer)(index)
        elif action is None:
            new_layer = blocks.layer(index)
        else:
            new_layer = action(index, place_layer(blocks.layer(index)), inputs)
        new_layer = place_layer(new_layer)
        inputs.update(partial(run_block, new_layer, config=config))
        del new_layer  # before the next one is read
        if progress is not None:
            progress(index + 1, config.n_layers)
    return inputs


def embed_tokens(
    blocks: Blocks,
    tokens: Int[Array | np.ndarray, "samples length"] | None,
    compute: Compute,
    *,
    batch_size: int = 16,
    spool: pathlib.Path | None = None,
) -> Activations:
    """What enters the first block; arguments as for `walk`."""
    ids_ST = np.zeros((0, 1), np.int32) if tokens is None else np.asarray(tokens)
    if tokens is not None:
        check_tokens(ids_ST, blocks.config)
    batches = _embed(blocks, ids_ST, batch_size, compute.jax_dtype)
    return Activations(batches, spool, samples=len(ids_ST))


def place_layer(layer: Tree) -> Tree:
    """Places one layer's leaves, or masks by path, as the mesh in use says."""
    mesh = mesh_lib.current()
    if mesh.size == 1:
        return layer

    def as_stacked(leaf: jax.Array) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((1, *leaf.shape), leaf.dtype)

    specs = mesh_lib.specs(mesh, {"layers": jax.tree.map(as_stacked, layer)})["layers"]
    return jax.tree.map(
        lambda leaf, spec: jax.device_put(leaf, NamedSharding(mesh, P(*spec[1:]))),
        layer,
        specs,
    )


def _embed(blocks, ids_ST, batch_size, dtype) -> Iterator[jax.Array]:
    """The embeddings of batches that the mesh in use divides."""
    mesh, shards = mesh_lib.current(), mesh_lib.batch_shards()
    for ids in in_batches(ids_ST, -(-batch_size // shards) * shards):
        padded = np.pad(ids, ((0, -len(ids) % shards), (0, 0)))
        yield jnp.asarray(mesh_lib.place_rows(mesh, blocks.embed(padded)), dtype)


@contextlib.contextmanager
def name_block(index: int) -> Iterator[None]:
    """Puts the number of the block in front of what an InputError says."""
    try:
        yield
    except InputError as error:
        raise InputError(f"block {index}: {error}") from error


def check_tokens(
    tokens: Int[Array | np.ndarray, "samples length"], config: LlamaConfig
) -> None:
    """Raises InputError unless a model can read these sequences."""
    if tokens.shape[0] < 1 or tokens.shape[1] < 1:
        raise InputError(f"calibration tokens are empty: shape {tokens.shape}")
    config.check_length(tokens.shape[1])
    lowest, highest = int(tokens.min()), int(tokens.max())
    if lowest < 0 or highest >= config.vocab_size:
        raise InputError(
            f"calibration tokens must be in [0, {config.vocab_size}), found "
            f"{lowest if lowest < 0 else highest}; is this the model's tokenizer?"
        )


@jax.jit
def _look_up(table_VD, ids):
    # Looked up with whole rows, as in `models.modules`.
    x = mesh_lib.constrain(table_VD, "tensor", None)[ids]
    return mesh_lib.constrain(x, mesh_lib.BATCH, *(None,) * (x.ndim - 1))


@partial(jax.jit, static_argnames="config")
def run_block(
    layer_params: Params, x_BTD: Float[Array, "B T D"], config: LlamaConfig
) -> Float[Array, "B T D"]:
    """One decoder block, compiled once for all layers."""
    return block(layer_params, x_BTD, config)[0]


@jax.jit
def take_layer(layers: Tree, index: int | Int[Array, ""]) -> Tree:
    """One layer of a stacked tree; the index is traced, so this compiles once."""
    return jax.tree.map(lambda leaf: leaf[index], layers)


@jax.jit
def stack_layers(layers: list[Tree]) -> Tree:
    """Stacks trees of one layer each on axis 0; the inverse of `take_layer`.

    Leaves are called as in the whole model, and lie as `mesh.SHARDING_RULES` says.
    """
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *layers)
    return mesh_lib.constrain_tree(stacked)
