"""What of a training state is on disk, and how it is told from another model's."""

import jax
import jax.numpy as jnp

from sparse_jax import mesh as mesh_lib
from sparse_jax.sparsity import masks as masks_lib
from sparse_jax.types import State, Tree


def to_saved(state: State) -> Tree:
    """What is written: bits for masks, raw key data for the random key."""
    return {
        "step": state.step,
        "params": state.params,
        "masks": masks_lib.pack_masks(state.masks),
        "opt": state.opt,
        "rng": jax.random.key_data(state.rng),
        "data": state.data,
        "extra": state.extra,
    }


def from_saved(saved: Tree, like: State) -> State:
    """The inverse of `to_saved`, for a state with the shapes of `like`."""
    return State(
        **saved
        | {
            "masks": masks_lib.unpack_masks(saved["masks"], like.params),
            "rng": jax.random.wrap_key_data(saved["rng"]),
        }
    )


def with_shardings(shapes: Tree) -> Tree:
    """Attaches the sharding of every leaf on the mesh in use."""
    return jax.tree.map(
        lambda s, sharding: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=sharding),
        shapes,
        mesh_lib.shardings(mesh_lib.current(), shapes),
    )


def shapes(tree: Tree) -> dict[str, str]:
    """The dtype and shape of every leaf, by its path."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): (
            f"{jnp.dtype(leaf.dtype)}{list(leaf.shape)}"
        )
        for path, leaf in leaves
    }
