"""Loads, evaluates, prunes and saves one model on meshes of 8 devices; prints JSON.

Run in a process of its own: the number of devices is fixed when JAX starts. Arguments:
a folder to write to, a regex of the linears to prune, and then solvers, each with a
pattern (`wanda:2:4`).
"""

import filecmp
import json
import pathlib
import sys
from typing import Any

import jax
import numpy as np

from benchmarks.sharded_prune import compare, parse_mesh, prune_config, random_work, run
from sparse_jax import evaluate, io
from sparse_jax import mesh as mesh_lib
from sparse_jax.prune import LowRank, Outliers, QuantizeConfig, SmoothQuant
from sparse_jax.quant import GridConfig
from sparse_jax.sparsity import sparsity_report
from sparse_jax.sparsity.adapters import merge
from sparse_jax.sparsity.masks import violations
from sparse_jax.tree import leaf_paths

ONE, MESHES = "1x1x1", ("2x2x2", "1x8x1")
IDS = np.random.default_rng(1).integers(0, 512, 500, np.int32)


def use(found: io.Model) -> dict[str, Any]:
    """What must be the same wherever a model lies."""
    numbers = evaluate.evaluate(
        found.params, found.config, IDS, np.ones_like(IDS), window=32, batch_size=3
    )
    return {
        "loss": numbers.loss,
        "violations": violations(found.params, found.masks),
        "sparsity": sparsity_report(found.params, found.masks)["model"],
    }


def move(folder: pathlib.Path, name: str) -> dict[str, Any]:
    """Loads the model onto a mesh, evaluates it there, and saves it again."""
    mesh = mesh_lib.make_mesh(parse_mesh(name))
    with jax.set_mesh(mesh):
        found = io.resolve(folder / "model", mesh)
        result = use(found)
        io.save(folder / name, found.params, found.config, masks=found.masks)
    leaves = leaf_paths(found.params)
    kernel = leaves["layers/attention/q/kernel"]
    mask = leaf_paths(found.masks)["layers/attention/q/kernel"]
    files = sorted(file.name for file in (folder / "model").iterdir())
    _, differing, missing = filecmp.cmpfiles(
        folder / "model", folder / name, files, shallow=False
    )
    return result | {
        "files": files,
        "differing": differing + missing,
        "specs": [str(leaf.sharding.spec) for leaf in (kernel, mask)],
        "share": kernel.addressable_shards[0].data.size / kernel.size,
    }


def round_and_compare(work: Any, rules: Any, mesh: str) -> dict[str, Any]:
    """Prunes and rounds on one device and on a mesh, with all that can be beside it."""
    quantize = QuantizeConfig(
        grid=GridConfig(bits=8, group=16),
        clip="search",
        smooth=SmoothQuant(),
        activations="static",
        low_rank=LowRank(grid=GridConfig(bits=4, group=16)),
        outliers=Outliers(),
    )
    config = prune_config("sparsegpt", "2:4", rules=rules, quantize=quantize)
    losses, kinds = {}, set()
    for name in (ONE, mesh):
        with jax.set_mesh(mesh_lib.make_mesh(parse_mesh(name))):
            model = run(work, config, name)
            params = merge(model.params, model.adapter)
            numbers = evaluate.evaluate(
                params, work.config, IDS, np.ones_like(IDS), window=32, batch_size=8
            )
        losses[name] = numbers.loss
        kinds.add((len(model.grids), len(model.adapter), len(model.input_scales)))
    scales = model.grids["layers/attention/q/kernel", 0].scales
    return {"loss": [*losses.values()], "kinds": sorted(kinds), "scales": scales.shape}


def main(folder: pathlib.Path, linears: str, solvers: list[str]) -> None:
    work, rules = random_work(), ((linears, "pattern"), (".*", "dense"))
    found: dict[str, Any] = {"pruned": {}, "moved": {}}
    for number, name in enumerate(solvers):
        config = prune_config(*name.split(":", 1), rules=rules)
        one = run(work, config, ONE)
        if number == 0:
            params, masks, *_ = one
            io.save(folder / "model", params, work.config, masks=masks)
        mesh = MESHES[number % 2]
        other = run(work, config, mesh)
        kernel = other[0]["layers"]["attention"]["q"]["kernel"]
        found["pruned"][f"{name} on {mesh}"] = compare(one, other) | {
            "spec": str(kernel.sharding.spec)
        }
    found["rounded"] = round_and_compare(work, rules, MESHES[0])
    found["one"] = use(io.resolve(folder / "model"))
    found["moved"] = {name: move(folder, name) for name in MESHES}
    print(json.dumps(found))


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]), sys.argv[2], sys.argv[3:])
