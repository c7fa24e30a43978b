"""Peak memory of pruning a model with the shape of Llama-3.2-1B, block by block.

    python benchmarks/prune_memory.py [--solver=sparsegpt] [--layers=16] [--json=FILE]

Writes a random model of that shape to a temporary folder (bfloat16, 2.5 GB for 16
layers), prunes it in a process of its own with 8 x 512 calibration tokens, and prints
that process's peak resident memory beside the bound

    1.5 (one block in float32 + its Hessians + the activations kept) + 0.6 GiB

and beside the memory of a process that has only imported the package.
"""

import argparse
import dataclasses
import functools
import json
import math
import pathlib
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator

import numpy as np

from sparse_jax import host, io, prune
from sparse_jax.io import names, safetensors_file
from sparse_jax.io.config_json import config_to_json
from sparse_jax.models import LlamaConfig, abstract_params, sizes
from sparse_jax.tree import leaf_paths

SAMPLES, LENGTH = 8, 512
ROWS = 1024  # of a tensor that are made at a time
GIB = 2**30


def write_model(directory: pathlib.Path, config: LlamaConfig) -> None:
    """A random model, one tensor in memory at a time."""
    leaves = leaf_paths(abstract_params(config))
    tensors = []
    for slot in names.slots(leaves, range(config.n_layers)):
        shape = names.slot_shape(slot, leaves[slot.path].shape)
        fill = functools.partial(random_tensor, slot.name, shape)
        tensors.append(safetensors_file.Tensor(slot.name, "BF16", shape, fill))
    safetensors_file.write(directory / "model.safetensors", tensors, {"format": "pt"})
    text = json.dumps(config_to_json(config, "bfloat16"))
    (directory / "config.json").write_text(text)


def random_tensor(name: str, shape: tuple[int, ...]) -> Iterator[np.ndarray]:
    dtype = safetensors_file.DTYPES["BF16"]
    if len(shape) == 1:
        yield np.ones(shape, dtype)
        return
    rng = np.random.default_rng(len(name) + math.prod(shape))
    for start in range(0, shape[0], ROWS):
        panel = (min(ROWS, shape[0] - start), *shape[1:])
        yield (0.02 * rng.standard_normal(panel, np.float32)).astype(dtype)


def child(directory: pathlib.Path, solver: str) -> dict:
    """Prunes the model in `directory`; run in a process of its own."""
    imported = peak_memory()
    reader = io.open_blocks(directory / "dense")
    tokens = np.random.default_rng(0).integers(
        0, reader.config.vocab_size, (SAMPLES, LENGTH), np.int32
    )
    config = prune.PruneConfig(
        solver=solver, sparsity=0.5, samples=SAMPLES, sample_length=LENGTH
    )
    started = time.perf_counter()
    prune.prune_directory(
        reader,
        directory / "sparse",
        tokens,
        config,
        progress=lambda done, total: print(
            f"block {done} of {total}: {peak_memory() / GIB:.2f} GiB", file=sys.stderr
        ),
    )
    seconds = time.perf_counter() - started
    return {"peak": peak_memory(), "imported": imported, "seconds": seconds}


def peak_memory() -> int:
    """Bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def bound(config: LlamaConfig) -> dict[str, float]:
    """The parts of the bound, in bytes."""
    leaves = leaf_paths(abstract_params(config)["layers"])
    block = sum(math.prod(leaf.shape[1:]) for leaf in leaves.values())
    width = config.n_heads * config.head_width
    hessians = 2 * config.d_model**2 + width**2 + config.d_ff**2
    activations = SAMPLES * LENGTH * config.d_model
    parts = {"block": block, "hessians": hessians, "activations": activations}
    parts = {name: 4.0 * size for name, size in parts.items()}
    return parts | {"bound": 1.5 * sum(parts.values()) + 0.6 * GIB}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--solver", default="sparsegpt")
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--json")
    parser.add_argument("--child", type=pathlib.Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        host.return_freed_memory()  # as the launcher does
        print(json.dumps(child(arguments.child, arguments.solver)))
        return
    config = dataclasses.replace(sizes.get("llama3.2_1b"), n_layers=arguments.layers)
    with tempfile.TemporaryDirectory() as name:
        (dense := pathlib.Path(name) / "dense").mkdir()
        write_model(dense, config)
        command = [sys.executable, __file__, f"--child={name}"]
        command.append(f"--solver={arguments.solver}")
        output = subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout
    numbers = {"solver": arguments.solver, "layers": arguments.layers}
    numbers |= json.loads(output.splitlines()[-1]) | bound(config)
    for name in ("block", "hessians", "activations", "imported", "bound", "peak"):
        print(f"{name:12s} {numbers[name] / GIB:6.2f} GiB")
    print(f"{'seconds':12s} {numbers['seconds']:6.0f}")
    print(f"peak / bound {numbers['peak'] / numbers['bound']:6.2f}")
    if arguments.json:
        pathlib.Path(arguments.json).write_text(json.dumps(numbers, indent=2))


if __name__ == "__main__":
    main()
