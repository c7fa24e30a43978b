"""Trains the same few steps on several meshes of 8 devices; prints JSON for the test.

Run in a process of its own: the number of devices is fixed when JAX starts.
"""

import dataclasses
import json
import pathlib
import sys

import jax
import numpy as np

from sparse_jax import mesh as mesh_lib
from sparse_jax import models, train
from sparse_jax.mesh import MeshConfig
from sparse_jax.prune import PruneConfig
from sparse_jax.sparsity import adapters
from sparse_jax.sparsity.masks import violations
from sparse_jax.tree import leaf_paths
from tests.sharded.models8 import CONFIG, MODEL, meshes, params_and_masks
from tests.train.helpers import make_batches

SOME = {
    "one": MeshConfig(),
    "all": MeshConfig(data=2, fsdp=2, tensor=2),
    "fsdp": MeshConfig(fsdp=8),
}


def name(mesh):
    return f"{mesh.data}x{mesh.fsdp}x{mesh.tensor}"


EVERY = {"one": MeshConfig()} | {name(mesh): mesh for mesh in meshes(8)}


def fit(mesh, directory):
    with jax.set_mesh(mesh_lib.make_mesh(mesh)):
        state = train.init_state(
            *params_and_masks(), CONFIG.optimizer, rng=jax.random.key(1)
        )
        return run(state, CONFIG, train.NextToken(model=MODEL), directory)


def fit_moving(mesh, directory):
    """The same with AST: moving 2:4 masks, their decay, a teacher, a low-rank term."""
    rules = PruneConfig(pattern="2:4").pattern_rules()
    adaptive = train.Adaptive.of(
        train.AdaptiveConfig(every=5), rules, MODEL, models.Compute()
    )
    decay = train.PrunedDecayConfig(rule="ast", peak=1e-3, rise_steps=5)
    optimizer = train.OptimizerConfig(pruned_decay=decay)
    config = dataclasses.replace(CONFIG, optimizer=optimizer)
    made = mesh_lib.make_mesh(mesh)
    with jax.set_mesh(made):
        params, masks = jax.tree.map(jax.numpy.asarray, params_and_masks())
        first = adaptive.first_masks(params, masks)
        params, masks = adapters.add_low_rank(
            params, first, adapters.LowRankConfig(group=16)
        )
        options = {"rng": jax.random.key(1), "mode": "straight_through"}
        state = train.init_state(params, masks, optimizer, **options)
        teacher = jax.tree.map(lambda w: 1.1 * w, params_and_masks()[0])
        teacher = jax.device_put(teacher, mesh_lib.shardings(made, teacher))
        loss = train.Distill(model=MODEL)
        options = {"teacher": teacher, "adaptive": adaptive}
        return run(state, config, loss, directory, **options)


def run(state, config, loss, directory, **options):
    """The trained state."""
    name = directory.name
    options |= {"directory": directory, "name": name, "quiet": True}
    return train.fit(state, make_batches, config, loss, **options)[0]


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


def compare_moving(folder):
    """Losses on one device and on eight, and how many bits of the masks differ."""
    losses, masks = {}, {}
    for key in ("one", "all"):
        directory = folder / f"moving_{key}"
        state = fit_moving(SOME[key], directory)
        losses[key] = [row["loss"] for row in train.read_metrics(directory)]
        masks[key] = [np.asarray(m) for m in jax.tree.leaves(state.masks)]
    pairs = list(zip(masks["one"], masks["all"], strict=True))
    return losses | {
        "bits": sum(m.size for m, _ in pairs),
        "differ": sum(int((a != b).sum()) for a, b in pairs),
        "kept": sum(int(m.sum()) for m in masks["all"]),
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
        found["moving"] = compare_moving(folder)
    print(json.dumps(found))


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]), every="--every" in sys.argv)
