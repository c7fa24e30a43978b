"""Time and error of the solvers, against the published SparseGPT and the flop floor.

    pip install -e '.[peers]'
    python benchmarks/solvers.py
    python benchmarks/solvers.py --shapes=512x512 --solvers=sparsegpt,admm --repeats=9
    python benchmarks/solvers.py --threads=0 --json=solvers.json
    python benchmarks/solvers.py --inputs=rotated --shapes=512x512,1024x1024 \
        --solvers=sparsegpt,sparsegpt_refit,admm

Every matrix (outputs x inputs) has correlated inputs and is pruned by each solver and
by the peer, in turn and repeatedly in one process. How much better than SparseGPT a
solver can be depends on the inputs (`--inputs`):

    factors   n/2 random factors of strength 1/k, noise on every input; 3 n tokens
    rotated   variances 1/k along random orthogonal directions; 2048 tokens

in both, inputs of unequal scale. One thread on one core by default,
and then seconds are CPU-seconds; `--threads=0` takes all cores and reports wall time.
The first call, which compiles, is not among them.

    sparsegpt            this package, exact counts, blocks of 32 columns
    sparsegpt_reference  this package with reference=True, blocks of 128 columns
    any other name       that solver of this package
    floor                (n^3/3 + outputs n^2) flops at the rate of a 2048^3 matmul
                         here, with n inputs: a factorisation and one product
    ratio                the peer's time over the solver's

`--peer=llmcompressor` (the default) is that package's own function on float32 tensors,
`--peer=public` a transcription of the published algorithm, `--peer=none` nobody.
Medians; ratios are taken round by round, since the machine's speed drifts.
"""

import argparse
import json
import os
import statistics
import time


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--shapes", default="512x512,1024x1024,2048x2048,4096x4096,4096x11008"
    )
    parser.add_argument("--patterns", default="0.5,0.7,2:4")
    parser.add_argument("--inputs", default="factors", choices=("factors", "rotated"))
    parser.add_argument("--solvers", default="sparsegpt,sparsegpt_reference")
    parser.add_argument(
        "--peer", default="llmcompressor", choices=("llmcompressor", "public", "none")
    )
    parser.add_argument("--threads", type=int, default=1, choices=(0, 1))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json")
    return parser.parse_args()


if __name__ == "__main__":
    ARGUMENTS = parse_arguments()
    if ARGUMENTS.threads == 1:  # before jax counts the cores
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})

import jax
import jax.numpy as jnp
import numpy as np

from sparse_jax import host
from sparse_jax.solvers import accumulate, output_energy, solve, symmetrize
from sparse_jax.sparsity import NM, Pattern, parse

BLOCK, DAMPING = 128, 0.01  # the published settings


def make_problem(n_out: int, n_in: int, inputs: str) -> tuple[jax.Array, jax.Array]:
    """Random weights, and the Hessian of correlated inputs of unequal scale."""
    rng = np.random.default_rng(n_in)
    hessian = jnp.zeros((n_in, n_in))
    for batch, x in enumerate(draw_inputs(rng, n_in, inputs)):
        hessian = accumulate(hessian, float(batch), x[None])
    weights = jnp.asarray(rng.standard_normal((n_out, n_in), np.float32))
    return weights, symmetrize(hessian)


def draw_inputs(rng: np.random.Generator, n_in: int, inputs: str):
    """Batches of activations [tokens, n_in]; see above."""
    strength = 1 / np.arange(1, n_in + 1)
    if inputs == "rotated":
        rotation = np.linalg.qr(rng.standard_normal((n_in, n_in)))[0]
        loading, noise, spread = rotation * np.sqrt(strength)[:, None], 0.0, 0.6
        n_batches, n_tokens = 8, 256
    else:
        strength = strength[: n_in // 2] / np.linalg.norm(strength[: n_in // 2])
        loading = rng.standard_normal((n_in // 2, n_in)) * strength[:, None]
        noise, spread = 0.6, 0.5
        n_batches, n_tokens = 12, n_in // 4
    loading = np.float32(loading)
    scale = np.float32(np.exp(spread * rng.standard_normal(n_in)))
    for _ in range(n_batches):
        x = jnp.matmul(
            rng.standard_normal((n_tokens, len(loading)), np.float32), loading
        )
        x += noise * rng.standard_normal(x.shape, np.float32)
        yield x * scale


def make_peer(name: str, pattern: Pattern, weights, hessian):
    """Returns a job that prunes a copy of the problem by the peer, or None."""
    if name == "none":
        return None
    try:
        import torch
    except ImportError:
        raise SystemExit("the peers need torch: pip install -e '.[peers]'") from None
    torch.set_num_threads(ARGUMENTS.threads or os.cpu_count())
    w, h = (torch.from_numpy(np.array(array)) for array in (weights, hessian))
    n_pruned, m = (
        (pattern.m - pattern.n, pattern.m) if isinstance(pattern, NM) else (0, 0)
    )
    sparsity = float(pattern.sparsity)
    if name == "public":
        return lambda: published(torch, w.clone(), h.clone(), sparsity, n_pruned, m)
    try:
        from llmcompressor.modifiers.pruning.sparsegpt import sgpt_sparsify
    except ImportError:
        raise SystemExit(
            "--peer=llmcompressor needs llmcompressor: pip install -e '.[peers]', or "
            "choose --peer=public, which needs torch alone"
        ) from None
    linear = torch.nn.Linear(w.shape[1], w.shape[0], bias=False)
    linear.weight.data = w

    def run():
        hessians = {linear: h.clone()}
        with torch.no_grad():
            return sgpt_sparsify.sparsify_weight(
                linear, hessians, sparsity, n_pruned, m, BLOCK, DAMPING, False
            )[1]

    return run


def published(torch, w, h, sparsity: float, n_pruned: int, m: int):
    """SparseGPT as published: explicit inverse, all columns always up to date."""
    n_in = w.shape[1]
    dead = h.diagonal() == 0
    h.diagonal()[dead] = 1
    w[:, dead] = 0
    h.diagonal().add_(DAMPING * h.diagonal().mean())
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(h))
    u = torch.linalg.cholesky(inverse, upper=True)
    for start in range(0, n_in, BLOCK):
        block = slice(start, min(start + BLOCK, n_in))
        v, u_block = w[:, block].clone(), u[block, block]
        scale = u_block.diagonal()
        errors, mask = torch.zeros_like(v), torch.zeros_like(v, dtype=torch.bool)
        if not m:
            cost = (v / scale) ** 2
            mask = cost <= cost.flatten().sort()[0][int(cost.numel() * sparsity)]
        for j in range(v.shape[1]):
            if m and j % m == 0:
                cost = (v[:, j : j + m] / scale[j : j + m]) ** 2
                lowest = cost.topk(n_pruned, dim=1, largest=False)[1]
                mask.scatter_(1, j + lowest, True)
            kept = torch.where(mask[:, j], 0, v[:, j])
            errors[:, j] = (v[:, j] - kept) / scale[j]
            v[:, j:] -= errors[:, j, None] * u_block[None, j, j:]
            w[:, start + j] = kept
        w[:, block.stop :] -= errors @ u[block, block.stop :]
    return w


def make_job(name: str, pattern: Pattern, weights, hessian):
    """Returns a job that prunes the problem by a solver of this package."""
    solver, options = name, {}
    if name == "sparsegpt_reference":
        solver, options = "sparsegpt", {"reference": True}

    def run():
        solution = solve(solver, weights, hessian, pattern, **options)
        return jax.block_until_ready(solution.weights)

    return run


def relative_error(weights, pruned, hessian) -> float:
    removed = jnp.asarray(np.asarray(pruned)) - weights
    return float(output_energy(removed, hessian) / output_energy(weights, hessian))


def timed(job) -> tuple[float, float]:
    """CPU-seconds and wall seconds of one call."""
    cpu, wall = time.process_time(), time.perf_counter()
    job()
    return time.process_time() - cpu, time.perf_counter() - wall


def measure(shape: tuple[int, int], pattern: Pattern, weights, hessian) -> list[dict]:
    """One row per solver, the peer's first."""
    n_out, n_in = shape
    square = jnp.ones((2048, 2048))
    multiply = jax.jit(jnp.matmul)
    jobs = {"matmul": lambda: multiply(square, square).block_until_ready()}
    peer = make_peer(ARGUMENTS.peer, pattern, weights, hessian)
    if peer is not None:
        jobs[ARGUMENTS.peer] = peer
    for name in ARGUMENTS.solvers.split(","):
        jobs[name] = make_job(name, pattern, weights, hessian)
    first, errors = {}, {}
    for name, job in jobs.items():
        start = time.perf_counter()
        result = job()
        first[name] = time.perf_counter() - start
        if name != "matmul":
            errors[name] = relative_error(weights, result, hessian)
    rounds = [
        {name: timed(job) for name, job in jobs.items()}
        for _ in range(ARGUMENTS.repeats)
    ]
    clock = 0 if ARGUMENTS.threads == 1 else 1

    def median(value) -> float:
        return statistics.median(value(times) for times in rounds)

    floor = (n_in**3 / 3 + n_out * n_in**2) / (2 * 2048**3)  # in matmuls
    rows = []
    for name, error in errors.items():
        row = {
            "shape": f"{n_out}x{n_in}",
            "inputs": ARGUMENTS.inputs,
            "pattern": str(pattern),
            "solver": name,
            "threads": ARGUMENTS.threads,
            "cpu_seconds": median(lambda t, name=name: t[name][0]),
            "wall_seconds": median(lambda t, name=name: t[name][1]),
            "first_wall_seconds": first[name],
            "floor_seconds": median(lambda t: floor * t["matmul"][clock]),
            "share_of_floor": median(
                lambda t, name=name: floor * t["matmul"][clock] / t[name][clock]
            ),
            "relative_error": error,
            "matmul_gflops": median(lambda t: 2 * 2048**3 / t["matmul"][clock] / 1e9),
        }
        if peer is not None:
            row["ratio"] = median(
                lambda t, name=name: t[ARGUMENTS.peer][clock] / t[name][clock]
            )
        rows.append(row)
    return rows


HEADER = (
    "shape       pattern           solver               seconds   wall  floor  "
    "share of floor  ratio   error"
)


def line(row: dict) -> str:
    seconds = row["cpu_seconds" if row["threads"] else "wall_seconds"]
    ratio = f"{row['ratio']:5.1f}x" if "ratio" in row else "     -"
    return (
        f"{row['shape']:11s} {row['pattern']:17s} {row['solver']:20s} {seconds:7.3f} "
        f"{row['wall_seconds']:6.3f} {row['floor_seconds']:6.3f} "
        f"{row['share_of_floor']:14.0%} {ratio} {row['relative_error']:8.5f}"
    )


def main() -> None:
    host.keep_freed_memory()  # as the launchers do
    print(HEADER)
    rows = []
    for shape in ARGUMENTS.shapes.split(","):
        n_out, n_in = map(int, shape.split("x"))
        weights, hessian = make_problem(n_out, n_in, ARGUMENTS.inputs)
        for pattern in ARGUMENTS.patterns.split(","):
            chosen = parse(pattern, 0.0) if ":" in pattern else None
            chosen = chosen or parse("unstructured", float(pattern))
            for row in measure((n_out, n_in), chosen, weights, hessian):
                rows.append(row)
                print(line(row), flush=True)
    if ARGUMENTS.json:
        with open(ARGUMENTS.json, "w") as file:
            json.dump(rows, file, indent=2)


if __name__ == "__main__":
    main()
