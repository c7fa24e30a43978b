"""Losses of one model on every mesh of 8 devices, on one process, two and four.

    python -m benchmarks.mesh_equality [--processes=1,2,4] [--steps=20] [--json=FILE]

The model of `tests/sharded/models8.py`, with the same weights and masks of 70 % each
time, trains on 8 virtual devices of the CPU, shared by real processes that talk through
gloo. Printed per mesh and number of processes: the largest relative difference of any
step's loss to that of one device, and how many pruned weights are not exactly zero.
"""

import argparse
import dataclasses
import json
import pathlib
import sys
import tempfile
from typing import Any

import jax
import numpy as np

from sparse_jax import distributed, train
from sparse_jax import mesh as mesh_lib
from sparse_jax.mesh import MeshConfig
from sparse_jax.sparsity.masks import violations
from sparse_jax.types import Tree
from tests.multihost import helpers
from tests.sharded import models8
from tests.train.helpers import make_batch

DEVICES = 8

Job = dict[str, Any]
"""One run: `mesh` (sizes of the axes), `directory`, `steps`."""


def fit(mesh: MeshConfig, directory: pathlib.Path, steps: int) -> dict[str, Any]:
    """Trains, from the newest checkpoint on if there is one; called by all processes.

    Returns:
      The losses of all steps, and the pruned weights that are not zero.
    """
    config = dataclasses.replace(models8.CONFIG, steps=steps)
    with jax.set_mesh(mesh_lib.make_mesh(mesh)):
        index, count = mesh_lib.batch_share(mesh_lib.current())

        def batches(start: int):
            while True:
                rows = np.arange(config.batch_size).reshape(count, -1)[index]
                yield jax.tree.map(lambda x: x[rows], make_batch(start))  # noqa: B023
                start += 1

        state, _ = train.fit(
            train.init_state(
                *place(models8.params_and_masks()),
                config.optimizer,
                rng=jax.random.key(1),
            ),
            batches,
            config,
            train.NextToken(model=models8.MODEL),
            directory=directory,
            name=directory.name,
            quiet=True,
        )
        broken = int(violations(state.params, state.masks))
    read = distributed.on_lead(lambda: train.read_metrics(directory))
    return {"losses": [row["loss"] for row in read], "violations": broken}


def place(trees: Tree) -> Tree:
    """Trees that every process holds, each leaf where the mesh in use wants it."""

    def leaf(values, sharding):
        return jax.make_array_from_callback(
            values.shape, sharding, lambda part: values[part]
        )

    shardings = [mesh_lib.shardings(mesh_lib.current(), tree) for tree in trees]
    return jax.tree.map(leaf, list(trees), shardings)


def run(
    jobs: list[Job], processes: int, devices: int, folder: pathlib.Path
) -> list[dict[str, Any]]:
    """Does jobs one after the other on so many new processes with `devices` in all."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "jobs.json").write_text(json.dumps(jobs))
    own = devices // processes
    command = ("-m", "benchmarks.mesh_equality", f"--worker={folder / 'jobs.json'}")
    done = helpers.run(folder / "printed", processes, *command, devices=own)
    for index, (code, _, err) in enumerate(done):
        if code:
            raise RuntimeError(f"process {index} ended with {code}: {err}")
    return json.loads(done[0].out.splitlines()[-1])


def work(jobs: list[Job]) -> None:
    """What each of the processes does."""
    distributed.initialize(distributed.DistributedConfig(peer_timeout=30))
    found = [
        fit(MeshConfig(**job["mesh"]), pathlib.Path(job["directory"]), job["steps"])
        for job in jobs
    ]
    if distributed.is_lead():
        print(json.dumps(found))


def difference(losses: list[float], expected: list[float]) -> float:
    """The largest relative difference of any step's loss."""
    return float(np.max(np.abs(np.array(losses) / np.array(expected) - 1)))


def table(processes: list[int], steps: int, folder: pathlib.Path) -> list[dict]:
    """A row per number of processes and mesh; the first is one device's."""
    alone = {"mesh": {}, "directory": str(folder / "one"), "steps": steps}
    (one,) = run([alone], 1, 1, folder / "one_process")
    rows = []
    for count in processes:
        jobs = [
            {
                "mesh": dataclasses.asdict(mesh),
                "directory": str(folder / f"{count}_{number}"),
                "steps": steps,
            }
            for number, mesh in enumerate(models8.meshes(DEVICES))
        ]
        for job, found in zip(
            jobs, run(jobs, count, DEVICES, folder / f"on_{count}"), strict=True
        ):
            rows.append(
                {
                    "processes": count,
                    **job["mesh"],
                    "difference": difference(found["losses"], one["losses"]),
                    "violations": found["violations"],
                    "last_loss": found["losses"][-1],
                }
            )
    return rows


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--processes", default="1,2,4")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--json")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.worker:
        return work(json.loads(pathlib.Path(options.worker).read_text()))
    counts = [int(count) for count in options.processes.split(",")]
    with tempfile.TemporaryDirectory() as folder:
        rows = table(counts, options.steps, pathlib.Path(folder))
    print("| processes | data x fsdp x tensor | largest difference | not zero |")
    print("|---|---|---|---|")
    for row in rows:
        mesh = f"{row['data']} x {row['fsdp']} x {row['tensor']}"
        print(
            f"| {row['processes']} | {mesh} | {row['difference']:.1e} "
            f"| {row['violations']} |"
        )
    if options.json:
        pathlib.Path(options.json).write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
