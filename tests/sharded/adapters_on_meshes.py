"""Factors and scales on a mesh of 8 devices as on one; prints JSON for the test.

Run in a process of its own: the number of devices is fixed when JAX starts.
"""

import filecmp
import json
import pathlib
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sparse_jax import io
from sparse_jax import mesh as mesh_lib
from sparse_jax.mesh import MeshConfig
from sparse_jax.sparsity import adapters, masks
from sparse_jax.sparsity.adapters import LowRankConfig
from sparse_jax.tree import from_paths, leaf_paths
from tests.sharded.models8 import MODEL, params_and_masks

MESH = MeshConfig(data=1, fsdp=4, tensor=2)
LINEARS = ("layers/attention/q/kernel", "layers/attention/o/kernel")
X_BD = np.random.default_rng(2).normal(size=(8, MODEL.d_model)).astype(np.float32)


def work():
    """A model of which only one linear of each layout is pruned, to compile less."""
    params, kept = params_and_masks()
    found = {p: m if p in LINEARS else None for p, m in leaf_paths(kept).items()}
    return params, from_paths(found)


def loss(params, kept, x_BD):
    """Both layouts of a kernel in use, as in the model."""
    weights = adapters.effective_params(params, kept, mode="straight_through")
    q_LDN, o_LND = (weights[name]["kernel"] for name in ("q", "o"))
    for q_DN, o_ND in zip(q_LDN, o_LND, strict=True):
        hidden_BN = mesh_lib.constrain(x_BD @ q_DN, mesh_lib.BATCH, "tensor")
        x_BD = x_BD + jnp.tanh(hidden_BN) @ o_ND
    return jnp.square(x_BD).mean()


def start(params, kept, *, trainable):
    config = LowRankConfig(group=8, trainable_projection=trainable)
    return adapters.add_scales(*adapters.add_low_rank(params, kept, config))


def compare(found, expected) -> float:
    """The largest difference of two trees, relative to the largest entry of a leaf."""
    found, expected = leaf_paths(found), leaf_paths(expected)
    return max(
        float(np.abs(np.asarray(found[p]) - np.asarray(e)).max() / np.abs(e).max())
        for p, e in expected.items()
    )


def place(mesh, tree):
    return jax.device_put(tree, mesh_lib.shardings(mesh, tree))


def train_on(mesh, *, trainable: bool) -> dict[str, Any]:
    """One gradient on the mesh and on one device."""

    def gradient(whole, kept, x_BD):
        grads = jax.grad(lambda p: loss(p, attention(kept), x_BD))(attention(whole))
        return mesh_lib.constrain_tree({"layers": {"attention": grads}})

    step = jax.jit(gradient)
    expected = step(*start(*work(), trainable=trainable), X_BD)
    with jax.set_mesh(mesh):
        placed = (place(mesh, tree) for tree in work())
        whole, kept = start(*placed, trainable=trainable)
        grads = leaf_paths(step(whole, kept, mesh_lib.place_rows(mesh, X_BD)))
    leaves = leaf_paths(whole)
    return {
        "difference": compare(grads, expected),
        "specs": {
            path: [str(leaf.sharding.spec) for leaf in (leaves[path], grads[path])]
            for path in grads
        },
    }


def attention(tree):
    """What `loss` takes of a tree."""
    return {name: tree["layers"]["attention"][name] for name in ("q", "o")}


def move(folder: pathlib.Path, mesh, *, trainable: bool) -> dict[str, Any]:
    """The same files and weights from the mesh and from one device."""
    params, kept = work()
    config = LowRankConfig(group=8, trainable_projection=trainable)
    factors = adapters.split(adapters.add_low_rank(params, kept, config)[0])[1]
    sparse = masks.apply(params, kept)
    io.save(folder / "one", sparse, MODEL, masks=kept, adapter=factors)
    with jax.set_mesh(mesh):
        model = io.resolve(folder / "one", mesh)
        io.save(
            folder / "mesh",
            model.params,
            MODEL,
            masks=model.masks,
            adapter=model.adapter,
        )
        merged = model.effective_params
    files = sorted(file.name for file in (folder / "one").iterdir())
    _, differing, missing = filecmp.cmpfiles(
        folder / "one", folder / "mesh", files, shallow=False
    )
    q = merged["layers"]["attention"]["q"]["kernel"]
    return {
        "files": files,
        "differing": differing + missing,
        "merged": compare(merged, adapters.merge(sparse, factors)),
        "share": q.addressable_shards[0].data.size / q.size,
    }


def main(folder: pathlib.Path) -> None:
    mesh, found = mesh_lib.make_mesh(MESH), {}
    for trainable in (False, True):
        key = "stored" if trainable else "indicator"
        found[key] = train_on(mesh, trainable=trainable)
        found[key] |= move(folder / key, mesh, trainable=trainable)
    print(json.dumps(found))


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
