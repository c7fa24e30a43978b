"""Trains the same few steps on several meshes of 8 devices; prints JSON for the test.

Run in a process of its own: the number of devices is fixed when JAX starts.
"""

import json
import pathlib
import sys

import jax
import numpy as np

from sparse_jax import mesh as mesh_lib
from sparse_jax import train
from sparse_jax.mesh import MeshConfig
from sparse_jax.sparsity.masks import violations
from sparse_jax.tree import leaf_paths
from tests.sharded.models8 import CONFIG, MODEL, meshes, params_and_masks
from tests.train.helpers import make_batches

SOME = {
    "one": MeshConfig(),
    "all": MeshConfig(data=2, fsdp=2, tensor=2),
    "fsdp": MeshConfig(fsdp=8),
    "tensor": MeshConfig(tensor=8),
}


def name(mesh):
    return f"{mesh.data}x{mesh.fsdp}x{mesh.tensor}"


EVERY = {"one": MeshConfig()} | {name(mesh): mesh for mesh in meshes(8)}


def fit(mesh, directory):
    with jax.set_mesh(mesh_lib.make_mesh(mesh)):
        state = train.init_state(
            *params_and_masks(), CONFIG.optimizer, rng=jax.random.key(1)
        )
        state, _ = train.fit(
            state,
            make_batches,
            CONFIG,
            train.NextToken(model=MODEL),
            directory=directory,
            name=directory.name,
            quiet=True,
        )
    return state


def describe(state, directory):
    """What the test looks at, as plain data."""
    params, masks = leaf_paths(state.params), leaf_paths(state.masks)
    moments = leaf_paths(state.opt[1].mu)
    return {
        "losses": [row["loss"] for row in train.read_metrics(directory)],
        "violations": int(violations(state.params, state.masks)),
        "zeros": sum(
            int((~np.asarray(m)).sum()) for m in masks.values() if m is not None
        ),
        "specs": {
            path: [
                str(leaf.sharding.spec)
                for leaf in (params[path], mask, moments[path])
                if leaf is not None
            ]
            for path, mask in masks.items()
        },
        "shard": {
            path: leaf.addressable_shards[0].data.size / leaf.size
            for path, leaf in params.items()
        },
    }


def main(folder: pathlib.Path, every: bool) -> None:
    found = {}
    for key, mesh in (EVERY if every else SOME).items():
        found[key] = describe(fit(mesh, folder / key), folder / key)
    if not every:
        # Half way on one mesh, the rest on another: as if the whole had run on one.
        newest = folder / "all" / "checkpoints" / "20"
        newest.rename(folder / "set_aside")
        found["moved"] = describe(fit(SOME["fsdp"], folder / "all"), folder / "all")
    print(json.dumps(found))


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]), every="--every" in sys.argv)
