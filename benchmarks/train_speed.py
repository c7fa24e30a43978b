"""Training speed as a share of the machine's matmul rate, and what masks cost.

    python benchmarks/train_speed.py [--sizes=5m,40m] [--repeats=11] [--json=FILE]

For each size, float32 on all threads, in turn and repeatedly in one process:

    matmul   2048^3 float32, the physical limit
    dense    a training step with no masks
    masked   the same step with 70 % of every linear masked

`share` is (6 P + 6 L d T) x tokens / seconds over the matmul rate, P the matmul
parameters, head included. Medians; ratios are taken round by round, since the machine's
speed drifts.
"""

import argparse
import functools
import json
import time

import jax
import jax.numpy as jnp
import numpy as np

from sparse_jax import host, models, train
from sparse_jax.evaluate import training_flops_per_token
from sparse_jax.models import sizes
from sparse_jax.prune import PruneConfig
from sparse_jax.sparsity.masks import make_masks, map_masks, project_kernel
from sparse_jax.tree import match_rules
from sparse_jax.types import Batch

SHAPES = {"tiny": (8, 128), "5m": (16, 128), "40m": (4, 256)}
"""Rows and tokens per row of a step."""


def make_step(size: str, sparsity: float | None):
    """A function that takes one training step and waits for it."""
    model, (batch_size, seq_len) = sizes.get(size), SHAPES[size]
    params = models.init(jax.random.key(0), model)
    masks = jax.tree.map(lambda _: None, params)
    if sparsity is not None:
        rules = PruneConfig(sparsity=sparsity).pattern_rules()
        masks = make_masks(params, rules)
        patterns = match_rules(rules, params)
        masks = map_masks(
            lambda w, m, p: None if m is None else project_kernel(p, jnp.abs(w)),
            params,
            masks,
            patterns,
        )
    optimizer = train.OptimizerConfig()
    state = train.init_state(params, masks, optimizer, rng=jax.random.key(0))
    tokens = np.random.default_rng(0).integers(
        0, model.vocab_size, (batch_size, seq_len + 1), np.int32
    )
    batch = Batch(
        tokens=tokens[:, :-1],
        targets=tokens[:, 1:],
        loss_weights=np.ones((batch_size, seq_len), np.float32),
        segment_ids=np.zeros((batch_size, seq_len), np.int32),
        positions=np.tile(np.arange(seq_len, dtype=np.int32), (batch_size, 1)),
    )
    compute = models.Compute(
        dtype="float32", scan_unroll=model.n_layers, loss_chunk=512
    )
    step = functools.partial(
        train.train_step,
        loss=train.NextToken(model=model, compute=compute),
        optimizer=optimizer,
    )

    def run():
        nonlocal state
        state, metrics = step(state, batch, 1e-4)
        metrics["loss"].block_until_ready()

    flops = training_flops_per_token(model, seq_len) * batch_size * seq_len
    return run, flops, batch_size * seq_len


def seconds(function) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def measure(size: str, repeats: int) -> dict:
    # Two of each, first and last inside: where a state lies in memory is worth a few
    # percent of speed, as much as what is measured.
    steps = [make_step(size, sparsity) for sparsity in (None, 0.7, 0.7, None)]
    square = jnp.ones((2048, 2048), jnp.float32)
    multiply = jax.jit(jnp.matmul)
    jobs = [step for step, _, _ in steps]
    jobs.append(lambda: multiply(square, square).block_until_ready())
    for job in jobs:  # compile, and warm up
        job(), job()
    times = np.empty((repeats, len(jobs)))
    for round_number in range(repeats):
        # Who goes first alternates, so that none always runs on a rested machine.
        order = range(len(jobs)) if round_number % 2 else reversed(range(len(jobs)))
        for number in order:
            times[round_number, number] = seconds(jobs[number])
    dense, masked = times[:, [0, 3]].mean(1), times[:, [1, 2]].mean(1)
    rate = 2 * 2048**3 / times[:, 4]
    _, flops, tokens = steps[0]
    return {
        "size": size,
        "tokens_per_second": tokens / np.median(dense),
        "matmul_gflops": np.median(rate) / 1e9,
        "share": float(np.median(flops / dense / rate)),
        "masked_over_dense": float(np.median(masked / dense)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", default="5m,40m")
    parser.add_argument("--repeats", type=int, default=11)
    parser.add_argument("--json")
    arguments = parser.parse_args()
    host.keep_freed_memory()  # as the launchers do
    rows = [measure(size, arguments.repeats) for size in arguments.sizes.split(",")]
    print("size   tokens/s  matmul GFLOP/s  share of it  masked / dense step")
    for row in rows:
        print(
            f"{row['size']:5s} {row['tokens_per_second']:9,.0f} "
            f"{row['matmul_gflops']:15.1f} {row['share']:12.1%} "
            f"{row['masked_over_dense']:20.3f}"
        )
    if arguments.json:
        with open(arguments.json, "w") as file:
            json.dump(rows, file, indent=2)


if __name__ == "__main__":
    main()
