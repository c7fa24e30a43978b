"""Trains the same few steps on several meshes of 8 devices; prints JSON for the test.

Run in a process of its own: the number of devices is fixed when JAX starts.
"""

import functools
import json
import pathlib
import sys

import jax
import numpy as np

from sparse_jax import mesh as mesh_lib
from sparse_jax import models, train
from sparse_jax.mesh import MeshConfig
from sparse_jax.models import LlamaConfig
from sparse_jax.prune import PruneConfig
from sparse_jax.sparsity.masks import make_masks, map_masks, project_kernel, violations
from sparse_jax.tree import leaf_paths, match_rules
from tests.train.helpers import make_batches

MODEL = LlamaConfig(
    vocab_size=64, d_model=32, d_ff=64, n_layers=2, n_heads=4, n_kv_heads=4
)
MESHES = {
    "one": MeshConfig(),
    "all": MeshConfig(data=2, fsdp=2, tensor=2),
    "fsdp": MeshConfig(fsdp=8),
    "tensor": MeshConfig(data=2, tensor=4),
}
CONFIG = train.TrainConfig(
    steps=6,
    batch_size=8,
    seq_len=16,
    checkpoint_every=3,
    log_every=1,
    schedule=train.ScheduleConfig(kind="constant", peak=1e-3),
)


@functools.cache
def params_and_masks():
    params = models.init(jax.random.key(0), MODEL)
    rules = PruneConfig(sparsity=0.7).pattern_rules()
    masks = map_masks(
        lambda w, m, p: None if m is None else project_kernel(p, abs(w)),
        params,
        make_masks(params, rules),
        match_rules(rules, params),
    )
    # On the host, so that every mesh can take them.
    return jax.tree.map(np.asarray, (params, masks))


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


def main(folder: pathlib.Path) -> None:
    found = {}
    for name, mesh in MESHES.items():
        found[name] = describe(fit(mesh, folder / name), folder / name)
    # Half way on one mesh, the rest on another: as if the whole had run on the first.
    newest = folder / "all" / "checkpoints" / "6"
    newest.rename(folder / "set_aside")
    found["moved"] = describe(fit(MESHES["fsdp"], folder / "all"), folder / "all")
    print(json.dumps(found))


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
