"""What moving masks and a teacher cost a training step.

    python benchmarks/recovery_step.py [--sizes=tiny,5m] [--repeats=11] [--json=FILE]

For each size, float32 on all threads, in turn and repeatedly in one process:

    fixed      ten steps with fixed 2:4 masks, the baseline
    moving     ten steps straight through masks with AST's decay, and one new draw; for
               2:4 and for 70 % unstructured
    distilled  ten fixed-mask steps with a teacher of the student's size: its weights
               (forward KL), or the 32 highest probabilities of each token (`top-k`)

Medians; ratios are taken round by round, since the machine's speed drifts. A teacher's
forward pass does a third of a step's multiplications, so 1.33 is the limit of
`distilled` without a cache.
"""

import argparse
import dataclasses
import functools
import json
import pathlib
import time

import jax
import jax.numpy as jnp
import numpy as np

from sparse_jax import models, train
from sparse_jax.models import sizes
from sparse_jax.prune import PruneConfig
from sparse_jax.sparsity.masks import make_masks
from sparse_jax.train.adaptive import Adaptive, AdaptiveConfig, refresh
from sparse_jax.types import Batch

SHAPES = {"tiny": (8, 128), "5m": (16, 128), "40m": (4, 256)}
"""Rows and tokens per row of a step."""

STEPS = 10
TOP_K = 32


def make_batch(model, rows, length) -> Batch:
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, model.vocab_size, (rows, length + 1), np.int32)
    positions = np.tile(np.arange(length, dtype=np.int32), (rows, 1))
    batch = Batch(
        tokens=tokens[:, :-1],
        targets=tokens[:, 1:],
        loss_weights=np.ones((rows, length), np.float32),
        segment_ids=np.zeros((rows, length), np.int32),
        positions=positions,
    )
    return jax.tree.map(jnp.asarray, batch)


class Job:
    """Ten steps of one kind, and the draw between them if masks move."""

    def __init__(self, size: str, pattern: str, *, moving=False, teacher=None):
        model, shape = sizes.get(size), SHAPES[size]
        compute = models.Compute(scan_unroll=model.n_layers, loss_chunk=512)
        params = models.init(jax.random.key(0), model)
        pruned = PruneConfig(pattern=pattern, sparsity=0.7)
        rules = pruned.pattern_rules()
        config = AdaptiveConfig(pattern=pattern, sparsity=0.7)
        self._adaptive = Adaptive.of(config, rules, model, compute)
        masks = self._adaptive.first_masks(params, make_masks(params, rules))
        optimizer, mode = train.OptimizerConfig(), "fixed"
        if moving:
            decay = train.PrunedDecayConfig(rule="ast", peak=1e-3)
            optimizer = dataclasses.replace(optimizer, pruned_decay=decay)
            mode = "straight_through"
        options = {"rng": jax.random.key(0), "mode": mode}
        self._state = train.init_state(params, masks, optimizer, **options)
        self._counts = jax.tree.map(jnp.asarray, self._adaptive.counts(params, 0))
        self._batch, self._moving = make_batch(model, *shape), moving
        loss = train.NextToken(model=model, compute=compute)
        given = None
        if teacher is not None:
            loss = train.Distill(model=model, compute=compute)
            given = models.init(jax.random.key(1), model)
        if teacher == "top_k":
            ids = jnp.tile(jnp.arange(TOP_K, dtype=jnp.int32), (*shape, 1))
            log_probs = jnp.full(ids.shape, np.log(0.9 / TOP_K), jnp.float16)
            given = train.TopK(ids, log_probs)
        self._step = functools.partial(
            train.train_step,
            teacher=given,
            loss=loss,
            optimizer=optimizer,
            mask_mode=mode,
        )

    def __call__(self) -> None:
        """Takes the ten steps and waits for them."""
        for _ in range(STEPS):
            arguments = (self._state, self._batch, 1e-4)
            self._state, metrics = self._step(*arguments, decay=1e-3)
        if self._moving:
            options = {"adaptive": self._adaptive}
            arguments = (self._state, self._counts, self._batch)
            self._state, _ = refresh(*arguments, **options)
        jax.block_until_ready((self._state.params, metrics))


def measure(size: str, repeats: int) -> dict:
    # Fixed steps first and last: where a state lies in memory is worth a few percent.
    jobs = {
        "fixed": Job(size, "2:4"),
        "moving 2:4": Job(size, "2:4", moving=True),
        "moving 70 %": Job(size, "unstructured", moving=True),
        "distilled": Job(size, "2:4", teacher="weights"),
        "distilled, top-k": Job(size, "2:4", teacher="top_k"),
        "fixed again": Job(size, "2:4"),
    }
    for job in jobs.values():  # compile, and warm up
        job(), job()
    times = {name: np.empty(repeats) for name in jobs}
    for number in range(repeats):
        # Who goes first alternates, so that none always runs on a rested machine.
        for name in list(jobs)[:: 1 if number % 2 else -1]:
            start = time.perf_counter()
            jobs[name]()
            times[name][number] = time.perf_counter() - start
    fixed = (times.pop("fixed") + times.pop("fixed again")) / 2
    ratios = {name: float(np.median(taken / fixed)) for name, taken in times.items()}
    return {"size": size, "step_seconds": float(np.median(fixed)) / STEPS, **ratios}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", default="tiny,5m")
    parser.add_argument("--repeats", type=int, default=11)
    parser.add_argument("--json", type=pathlib.Path)
    arguments = parser.parse_args()
    rows = [measure(size, arguments.repeats) for size in arguments.sizes.split(",")]
    print("| size | fixed-mask step | " + " | ".join([*rows[0]][2:]) + " |")
    print("|---" * len(rows[0]) + "|")
    for row in rows:
        size, taken, *ratios = row.values()
        cells = [size, f"{1000 * taken:.1f} ms", *(f"{r:.3f}x" for r in ratios)]
        print("| " + " | ".join(cells) + " |")
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
