"""Pruning on meshes of 8 devices against one device: masks and errors.

    python -m benchmarks.sharded_prune [--model=DIR --text=FILE] [--layers=N]
        [--solvers=magnitude,wanda,sparsegpt,sparsegpt_refit,admm]
        [--patterns=0.7,2:4] [--meshes=2x2x2,1x8x1,2x1x4,batch]
        [--samples=31] [--length=64] [--json=FILE]

A mesh is named by its axes data x fsdp x tensor, of virtual devices on the CPU. Without
`--model` it is the random model of `tests/sharded/models8.py` on random tokens; with it
the first blocks of a real one, calibrated on real text. Printed for every solver,
pattern and mesh: how many bits of the masks differ from one device's, in all blocks and
in the first, and over all matrices the furthest that a relative error is from one
device's, as a ratio.

The mesh `batch` is one device again, which takes twice as many sequences at a time: how
far results move when nothing but the order of sums changes. Later blocks are calibrated
on the outputs of earlier ones, and make rounding errors larger.
"""

import argparse
import dataclasses
import json
import os
import pathlib
import sys
from typing import Any

# Before JAX starts, which the imports below do not.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=8")

import jax
import numpy as np

from sparse_jax import io, models
from sparse_jax import mesh as mesh_lib
from sparse_jax.mesh import MeshConfig
from sparse_jax.models import LlamaConfig
from sparse_jax.prune import PruneConfig, prune, sample_windows
from sparse_jax.tree import leaf_paths
from sparse_jax.types import Params
from tests.sharded import models8

SOLVERS = "magnitude,wanda,sparsegpt,sparsegpt_refit,admm"
SAMPLES, LENGTH = 31, 64  # the last batch lacks one, which a mesh fills up
BATCH = 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class Work:
    """A model on the host, and its calibration sequences."""

    config: LlamaConfig
    params: Params
    tokens: np.ndarray


def random_work() -> Work:
    """The small model that every mesh divides."""
    # A Hessian of no more tokens than its width would be singular, and errors zero.
    config = dataclasses.replace(models8.MODEL, vocab_size=512)
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: 0.1 * rng.standard_normal(leaf.shape, np.float32),
        models.abstract_params(config),
    )
    tokens = rng.integers(0, config.vocab_size, (SAMPLES, LENGTH), np.int32)
    return Work(config=config, params=params, tokens=tokens)


def real_work(arguments: argparse.Namespace) -> Work:
    """The first blocks of a model, and sequences of a text."""
    directory, text, layers = arguments.model, arguments.text, arguments.layers
    found = io.resolve(directory)
    if found.params is None or found.tokenizer is None:
        sys.exit(f"error: {directory}: needs weights and a tokenizer")
    config = dataclasses.replace(
        found.config, n_layers=min(layers or 10**6, found.config.n_layers)
    )
    params = jax.tree.map(np.asarray, found.params)
    params["layers"] = jax.tree.map(lambda w: w[: config.n_layers], params["layers"])
    ids, _ = found.tokenizer.encode_with_bytes(pathlib.Path(text).read_text("utf-8"))
    tokens = sample_windows(ids, arguments.samples, arguments.length, 0)
    return Work(config=config, params=params, tokens=tokens)


def run(work: Work, config: PruneConfig, mesh: str):
    """Prunes the model on a mesh, see `parse_mesh`."""
    if mesh == "batch":
        config = dataclasses.replace(config, batch_size=2 * BATCH)
        mesh = "1x1x1"
    devices = mesh_lib.make_mesh(parse_mesh(mesh))
    with jax.set_mesh(devices):
        params = jax.device_put(work.params, mesh_lib.shardings(devices, work.params))
        return prune(params, None, work.tokens, work.config, config)


def compare(one, other) -> dict[str, Any]:
    """What two results of `run` differ in; the first is the measure."""
    pairs = zip(leaf_paths(one[1]).values(), leaf_paths(other[1]).values(), strict=True)
    masks = [(np.asarray(a), np.asarray(b)) for a, b in pairs if a is not None]
    errors = [
        b["relative_error"] / a["relative_error"]
        for a, b in zip(one[2], other[2], strict=True)
    ]
    return {
        "bits": sum(a.size for a, _ in masks),
        "differing": sum(int((a != b).sum()) for a, b in masks),
        "first_block": sum(int((a[0] != b[0]).sum()) for a, b in masks),
        "kept": [int(a.sum()) == int(b.sum()) for a, b in masks].count(False) == 0,
        "error_ratio": max(errors, key=lambda ratio: abs(ratio - 1)),
    }


def prune_config(solver: str, pattern: str, **options: Any) -> PruneConfig:
    """A run's configuration: a sparsity, or the name of a pattern."""
    options |= {"pattern": pattern} if ":" in pattern else {"sparsity": float(pattern)}
    return PruneConfig(solver=solver, batch_size=BATCH, **options)


def parse_mesh(name: str) -> MeshConfig:
    """`2x2x2` -> data=2, fsdp=2, tensor=2."""
    data, fsdp, tensor = map(int, name.split("x"))
    return MeshConfig(data=data, fsdp=fsdp, tensor=tensor)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model")
    parser.add_argument("--text")
    parser.add_argument("--layers", type=int)
    parser.add_argument("--solvers", default=SOLVERS)
    parser.add_argument("--patterns", default="0.7,2:4")
    parser.add_argument("--meshes", default="2x2x2,1x8x1,2x1x4,batch")
    parser.add_argument("--samples", type=int, default=SAMPLES)
    parser.add_argument("--length", type=int, default=LENGTH)
    parser.add_argument("--json")
    arguments = parser.parse_args()
    work = random_work()
    if arguments.model:
        work = real_work(arguments)
    print(
        "solver           pattern  mesh    differing bits    first block  error ratio"
    )
    rows = []
    for solver in arguments.solvers.split(","):
        for pattern in arguments.patterns.split(","):
            config = prune_config(solver, pattern)
            one = run(work, config, "1x1x1")
            for mesh in arguments.meshes.split(","):
                found = compare(one, run(work, config, mesh))
                rows.append({"solver": solver, "pattern": pattern, "mesh": mesh})
                rows[-1] |= found
                share = f"{found['differing']:5d} = {_percent(found)}"
                numbers = f"{found['first_block']:11d}  {found['error_ratio']:.6f}"
                print(
                    f"{solver:16s} {pattern:8s} {mesh:7s} {share:17s} {numbers}",
                    flush=True,
                )
    if arguments.json:
        pathlib.Path(arguments.json).write_text(json.dumps(rows, indent=2) + "\n")


def _percent(found: dict[str, Any]) -> str:
    return f"{100 * found['differing'] / found['bits']:.4f} %"


if __name__ == "__main__":
    main()
