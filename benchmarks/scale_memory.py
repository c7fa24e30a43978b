"""Memory of loading and saving a sharded model, beside the model itself.

    python -m benchmarks.scale_memory [--processes=1,2] [--folder=DIR] [--json=FILE]

A random Llama of 1.1 GiB in float32, with masks, is loaded onto 8 virtual devices of
the CPU, in one process or shared by several that talk through gloo, and saved again.
On the CPU the arrays of the devices are memory of the process, so its peak says what is
needed beside them. Printed per process: the bytes of its shards, and by how much the
peak of resident memory exceeded them while loading and while saving.
"""

import argparse
import json
import os
import pathlib
import sys
import tempfile
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from sparse_jax import distributed, host, io
from sparse_jax import mesh as mesh_lib
from sparse_jax.io import export, names
from sparse_jax.io.entries import leaf_shapes
from sparse_jax.io.names import Slot
from sparse_jax.mesh import MeshConfig
from sparse_jax.models import LlamaConfig
from tests.multihost import helpers

CONFIG = LlamaConfig(
    vocab_size=32_000, d_model=1536, d_ff=4096, n_layers=7, n_heads=16, n_kv_heads=8
)
DEVICES, MIB = 8, 2**20
_ROWS = 256


def write_random(directory: pathlib.Path) -> None:
    """Writes the model a few rows at a time, in bfloat16, half of its linears zero."""
    shapes = leaf_shapes(CONFIG)
    rng = np.random.default_rng(0)

    def panels(slot: Slot) -> Iterator[np.ndarray]:
        rows, *rest = names.slot_shape(slot, shapes[slot.path])
        for start in range(0, rows, _ROWS):
            part = rng.standard_normal((min(_ROWS, rows - start), *rest), np.float32)
            if "kernel" in slot.path and slot.layer is not None:
                part[..., ::2] = 0
            yield export.cast(part, "bfloat16", slot.path)

    export.write_model(directory, CONFIG, "bfloat16", panels, {})


def peak() -> int:
    """The most memory that was resident since `start_peak`, in bytes."""
    for line in pathlib.Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no VmHWM in /proc/self/status")


def start_peak() -> None:
    """Forgets the peak so far."""
    pathlib.Path("/proc/self/clear_refs").write_text("5")


def resident() -> int:
    """Memory that is resident now, in bytes."""
    pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def measure(folder: pathlib.Path) -> dict[str, Any]:
    """Loads and saves; called by all processes."""
    host.return_freed_memory()
    mesh = mesh_lib.make_mesh(MeshConfig(fsdp=DEVICES // 2, tensor=2))
    with jax.set_mesh(mesh):
        before = resident()
        start_peak()
        found = io.resolve(folder / "model", mesh)
        arrays = jax.tree.leaves((found.params, found.masks))
        shards = [s.data.nbytes for array in arrays for s in array.addressable_shards]
        loading = peak() - before - sum(shards)
        before = resident()
        start_peak()
        options = {"masks": found.masks, "overwrite": True}
        io.save(folder / "saved", found.params, CONFIG, **options)
        saving = peak() - before
    return {
        "process": jax.process_index(),
        "shards_mib": sum(shards) / MIB,
        "largest_shard_mib": max(shards) / MIB,
        "largest_leaf_mib": max(array.nbytes for array in arrays) / MIB,
        "loading_mib": loading / MIB,
        "saving_mib": saving / MIB,
    }


def in_process(folder: pathlib.Path) -> None:
    """What each of the processes does; the lead prints the numbers of all."""
    distributed.initialize(distributed.DistributedConfig())
    rows = distributed.gather(measure(folder))
    if distributed.is_lead():
        print(json.dumps(rows))


def run(count: int, folder: pathlib.Path) -> list[dict[str, Any]]:
    """The rows of `count` processes, which share the devices."""
    command = (pathlib.Path(__file__), "--in_process", folder)
    done = helpers.run(
        folder / f"of_{count}", count, *command, devices=DEVICES // count
    )
    for process in done:
        if process.code:
            sys.exit(process.err)
    return [
        {"processes": count} | row for row in json.loads(done[0].out.split("\n")[-2])
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--processes", default="1,2")
    parser.add_argument("--folder")
    parser.add_argument("--json")
    parser.add_argument("--in_process", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.in_process:
        return in_process(pathlib.Path(arguments.in_process))
    print("processes  process  shards MiB  largest leaf  loading +MiB  saving +MiB")
    rows = []
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        write_random(pathlib.Path(name, "model"))
        for count in map(int, arguments.processes.split(",")):
            for row in run(count, pathlib.Path(name)):
                rows.append(row)
                print(
                    f"{count:9d}  {row['process']:7d}  {row['shards_mib']:10.0f}  "
                    f"{row['largest_leaf_mib']:12.0f}  {row['loading_mib']:12.0f}  "
                    f"{row['saving_mib']:11.0f}",
                    flush=True,
                )
    if arguments.json:
        pathlib.Path(arguments.json).write_text(json.dumps(rows, indent=2) + "\n")
    return None


if __name__ == "__main__":
    main()
