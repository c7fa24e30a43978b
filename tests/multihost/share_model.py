"""One of several processes that load, prune, evaluate and save a model together.

Arguments: a folder that holds `model/`, a Hugging Face directory with masks, and maybe
a solver. The lead prints what the process itself and the others saw.
"""

import filecmp
import json
import pathlib
import sys

import jax
import numpy as np

from benchmarks.sharded_prune import prune_config, random_work
from sparse_jax import distributed, evaluate, io
from sparse_jax import mesh as mesh_lib
from sparse_jax.mesh import MeshConfig
from sparse_jax.prune import prune
from sparse_jax.sparsity.masks import count, map_masks, violations
from sparse_jax.types import InputError

IDS = np.random.default_rng(1).integers(0, 512, 300, np.int32)


def refused(function):
    """The sentence of the InputError that a call raises."""
    try:
        function()
    except InputError as error:
        return str(error)
    return None


def saved_again(first: pathlib.Path, again: pathlib.Path, mesh):
    """Which files of a quantised model are the same when it is loaded and saved."""
    found = io.resolve(first, mesh)
    io.save(again, found.params, found.config, masks=found.masks, grids=found.grids)
    return filecmp.cmpfiles(
        first, again, [file.name for file in first.iterdir()], False
    )


def share(folder: pathlib.Path):
    mesh = mesh_lib.make_mesh(MeshConfig(fsdp=2, tensor=2))
    with jax.set_mesh(mesh):
        found = io.resolve(folder / "model", mesh)
        params, masks, config = found.params, found.masks, found.config
        io.save(folder / "saved", params, config, masks=masks)
        huge = map_masks(lambda p, m: p if m is not None else 1e6 * p, params, masks)
        numbers = evaluate.evaluate(params, config, IDS, np.ones_like(IDS), window=32)
        seen = {
            "local": params["embed"]["embedding"].is_fully_addressable,
            "loss": numbers.loss,
            "count": count(masks),
            "violations": violations(params, masks),
            "full": refused(lambda: io.save(folder / "saved", params, config)),
            "half": refused(
                lambda: io.save(folder / "half", huge, config, dtype="float16")
            ),
            "codes": saved_again(folder / "quantized", folder / "again", mesh),
            "damaged": refused(lambda: io.resolve(folder / "damaged", mesh)),
        }
    files = [file.name for file in (folder / "model").iterdir()]
    return seen | {
        "files": filecmp.cmpfiles(folder / "model", folder / "saved", files, False)
    }


def prune_more(folder: pathlib.Path, solver: str):
    mesh = mesh_lib.make_mesh(MeshConfig(fsdp=2, tensor=2))
    with jax.set_mesh(mesh):
        found, work = io.resolve(folder / "model", mesh), random_work()
        config = prune_config(solver, "0.8")
        params, masks, rows, *_ = prune(
            found.params, found.masks, work.tokens, work.config, config
        )
        return {
            "violations": violations(params, masks),
            "count": count(masks),
            "errors": [row["relative_error"] for row in rows],
        }


def main() -> None:
    distributed.initialize(distributed.DistributedConfig(peer_timeout=30))
    folder, *solver = sys.argv[1:]
    do = prune_more if solver else share
    seen = distributed.gather(do(pathlib.Path(folder), *solver))
    if distributed.is_lead():
        print(json.dumps(seen))


if __name__ == "__main__":
    main()
