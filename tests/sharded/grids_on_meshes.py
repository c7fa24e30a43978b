"""Grids beside kernels, and blocks that train, on 8 devices as on one; prints JSON.

Run in a process of its own: the number of devices is fixed when JAX starts.
"""

import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sparse_jax import mesh as mesh_lib
from sparse_jax.mesh import MeshConfig
from sparse_jax.prune import BlockTrainingConfig, ParamsBlocks
from sparse_jax.prune.block_training import train_block
from sparse_jax.prune.blockwise import place_layer, take_layer
from sparse_jax.prune.dense_stream import DenseStream
from sparse_jax.quant import GridConfig
from sparse_jax.sparsity import adapters
from sparse_jax.sparsity.adapters import QuantTrainConfig
from sparse_jax.tree import from_paths, leaf_paths
from tests.sharded.adapters_on_meshes import X_BD, compare, place, work
from tests.sharded.models8 import MODEL, params_and_masks

MESH = MeshConfig(data=1, fsdp=4, tensor=2)
GRID = GridConfig(bits=4, group=8, symmetric=False)
TOKENS = np.random.default_rng(0).integers(0, MODEL.vocab_size, (12, 16), np.int32)
TUNE = BlockTrainingConfig(epochs=2, learning_rate=1e-3)


def loss(params, kept, x_BD):
    """Both layouts of a kernel in use, as in the model."""
    options = {"mode": "straight_through", "grid": GRID}
    weights = adapters.effective_params(params, kept, **options)
    attention = weights["layers"]["attention"]
    q_LDN, o_LND = (attention[name]["kernel"] for name in ("q", "o"))
    for q_DN, o_ND in zip(q_LDN, o_LND, strict=True):
        hidden_BN = mesh_lib.constrain(x_BD @ q_DN, mesh_lib.BATCH, "tensor")
        x_BD = x_BD + jnp.tanh(hidden_BN) @ o_ND
    return jnp.square(x_BD).mean()


def attention(tree):
    """What `loss` takes of a tree."""
    kept = {name: tree["layers"]["attention"][name] for name in ("q", "o")}
    return {"layers": {"attention": kept}}


def gradients(mesh, train: str) -> dict[str, Any]:
    """One gradient on the mesh and on one device, of what trains."""
    targets = ("layers/attention/(q|o)",)
    config = QuantTrainConfig(grid=GRID, train=train, targets=targets)

    def gradient(whole, kept, x_BD):
        leaves = leaf_paths(whole)
        floats = {p: w for p, w in leaves.items() if w.dtype != jnp.int8}

        def of_floats(floats):
            return loss(from_paths(leaves | floats), kept, x_BD)

        return mesh_lib.constrain_tree(from_paths(jax.grad(of_floats)(floats)))

    step = jax.jit(gradient)

    def run(params, kept, x_BD):
        params, kept = adapters.add_grids(params, kept, config)
        return params, step(attention(params), attention(kept), x_BD)

    _, expected = run(*work(), X_BD)
    with jax.set_mesh(mesh):
        placed = (place(mesh, tree) for tree in work())
        whole, grads = run(*placed, mesh_lib.place_rows(mesh, X_BD))
    leaves = leaf_paths(whole)
    specs = {
        path: [str(leaf.sharding.spec) for leaf in (leaves[path], gradient)]
        for path, gradient in leaf_paths(grads).items()
    }
    return {"difference": compare(grads, expected), "specs": specs}


def block() -> dict[str, Any]:
    """The first block, pruned, rounded and trained on the mesh in use."""
    params, kept = params_and_masks()
    blocks = ParamsBlocks(params, MODEL)
    config = QuantTrainConfig(grid=GRID)
    rounded, masks, grids = adapters.fold_grids(
        *adapters.add_grids(params, kept, config), GRID
    )
    layer = place_layer(take_layer(rounded["layers"], 0))
    masks = {p: m for p, m in leaf_paths(masks).items() if m is not None}
    masks = place_layer({path: mask[0] for path, mask in masks.items()})
    own = {path: grid for (path, index), grid in grids.items() if index == 0}
    inputs = DenseStream(blocks, TOKENS, batch_size=8).targets(-1)
    targets = DenseStream(blocks, TOKENS, batch_size=8).targets(0)
    found = train_block(layer, masks, own, inputs, targets, MODEL, TUNE)
    return {"errors": [found.before, found.after], "params": found.params}


def main() -> None:
    mesh = mesh_lib.make_mesh(MESH)
    found: dict[str, Any] = {k: gradients(mesh, k) for k in ("all", "scales")}
    one = block()
    with jax.set_mesh(mesh):
        eight = block()
    norms = [
        float(jnp.sqrt(sum(jnp.sum(w**2) for w in jax.tree.leaves(run["params"]))))
        for run in (one, eight)
    ]
    found["block"] = {"errors": [one["errors"], eight["errors"]], "norms": norms}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
