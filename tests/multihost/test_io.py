"""Two processes share one model: nobody holds all of it, files and numbers agree."""

import json
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.sharded_prune import prune_config, random_work
from sparse_jax import evaluate, io, quant
from sparse_jax.io import safetensors_file
from sparse_jax.prune import prune
from sparse_jax.quant import GridConfig
from sparse_jax.sparsity.masks import count
from sparse_jax.tree import from_paths, leaf_paths
from tests.multihost import helpers
from tests.multihost.share_model import IDS

SHARE = pathlib.Path(__file__).with_name("share_model.py")


def damage(folder):
    """Marks all weights of the last matrix as pruned, which they are not."""
    path = folder / "masks.safetensors"
    name = sorted(safetensors_file.read_header(path)[0])[-1]
    entry = safetensors_file.read_header(path)[0][name]
    content = bytearray(path.read_bytes())
    content[entry.offset : entry.offset + entry.nbytes] = bytes(entry.nbytes)
    path.write_bytes(content)


def quantize(params, masks):
    """The pruned matrices on grids of 4 bits with zero points, and these."""
    config, leaves = GridConfig(bits=4, group=16, symmetric=False), leaf_paths(params)
    grids = {}
    for path, mask in leaf_paths(masks).items():
        if mask is not None:
            grid = quant.fit(leaves[path], config, mask, axis=-2)
            rounded = quant.round_to_grid(leaves[path], grid, axis=-2)
            leaves[path] = jnp.where(mask, rounded, 0)
            for layer in range(len(mask)):
                grids[path, layer] = jax.tree.map(lambda leaf, i=layer: leaf[i], grid)
    return from_paths(leaves), grids


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model that is pruned by half, and a copy with damaged masks."""
    folder = tmp_path_factory.mktemp("shared")
    work = random_work()
    prune_half = prune_config("magnitude", "0.5")
    params, masks, _, *_ = prune(work.params, None, None, work.config, prune_half)
    io.save(folder / "model", params, work.config, masks=masks)
    on_grids, grids = quantize(params, masks)
    io.save(folder / "quantized", on_grids, work.config, masks=masks, grids=grids)
    shutil.copytree(folder / "model", folder / "damaged")
    damage(folder / "damaged")
    return folder


def share_model(folder, *solver):
    """What each of two processes saw."""
    lead, other = helpers.run(folder / "logs", 2, SHARE, folder, *solver, devices=2)
    assert (lead.code, other.code) == (0, 0), lead.err + other.err
    return json.loads(lead.out.splitlines()[-1])


@pytest.fixture(scope="module")
def found(folder):
    return share_model(folder)


@pytest.mark.parametrize("process", [0, 1])
def test_the_files_come_back_as_they_were(found, process):
    same, differing, missing = found[process]["files"]
    assert "masks.safetensors" in same and not differing and not missing
    assert found[process]["local"] is False
    same, differing, missing = found[process]["codes"]
    assert "model.safetensors" in same and not differing and not missing


@pytest.mark.parametrize("process", [0, 1])
def test_numbers_are_those_of_one_process(folder, found, process):
    model, seen = io.resolve(folder / "model"), found[process]
    numbers = evaluate.evaluate(
        model.params, model.config, IDS, np.ones_like(IDS), window=32
    )
    assert seen["loss"] == pytest.approx(numbers.loss, rel=1e-6)
    assert tuple(seen["count"]) == count(model.masks) and seen["violations"] == 0


@pytest.mark.parametrize("process", [0, 1])
def test_what_stops_one_stops_both(folder, found, process):
    seen = found[process]
    assert "saved: is not empty" in seen["full"]
    assert "does not fit into float16" in seen["half"]
    assert "are not zero but marked as pruned" in seen["damaged"]
    assert not (folder / "half").exists()


@pytest.mark.slow
@pytest.mark.parametrize("solver", ["wanda", "sparsegpt_refit"])
def test_pruning_is_that_of_one_process(folder, solver):
    model, work = io.resolve(folder / "model"), random_work()
    config = prune_config(solver, "0.8")
    _, masks, rows, *_ = prune(
        model.params, model.masks, work.tokens, work.config, config
    )
    for seen in share_model(folder, solver):
        assert tuple(seen["count"]) == count(masks) and seen["violations"] == 0
        errors = [row["relative_error"] for row in rows]
        np.testing.assert_allclose(seen["errors"], errors, rtol=1e-3)
