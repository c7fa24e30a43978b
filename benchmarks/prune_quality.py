"""Held-out loss after one-shot pruning: every solver, several patterns and seeds.

    python benchmarks/prune_quality.py --models=DIR,DIR --text=FILE [--json=FILE]
        [--solvers=...] [--patterns=0.5,0.6,0.7,0.8,2:4,8:16,5:16] [--seeds=3]

A solver may be followed by an allocation: `--solvers=sparsegpt,sparsegpt+output`.
The text is cut in two: calibration sequences are drawn from its first half (one draw
per seed), and all models are evaluated on the beginning of the second half. Matrices
that an N:M pattern does not divide are pruned unstructured to the same sparsity.

For each model and pattern: the loss of the dense model, then each solver's mean loss
over the seeds with its standard deviation. A `*` marks a solver that does not help: its
mean loss is not below that of the one named before it in
magnitude < Wanda, magnitude < SparseGPT < refit, SparseGPT < ADMM.
"""

import argparse
import json
import pathlib
import statistics
import sys

import tqdm

from sparse_jax import evaluate, host, io, prune
from sparse_jax.models import LlamaConfig
from sparse_jax.sparsity import parse
from sparse_jax.types import InputError

SOLVERS = ("magnitude", "wanda", "sparsegpt", "sparsegpt_refit", "admm")
PATTERNS = "0.5,0.6,0.7,0.8,2:4,8:16,5:16"
BETTER_THAN = {
    "wanda": "magnitude",
    "sparsegpt": "magnitude",
    "sparsegpt_refit": "sparsegpt",
    "admm": "sparsegpt",
    "sparsegpt+owl": "sparsegpt",
    "sparsegpt+error": "sparsegpt",
    "sparsegpt+output": "sparsegpt",
}
SAMPLES, LENGTH, WINDOW, EVALUATED = 128, 128, 256, 50_000


def prune_config(solver: str, pattern: str, seed: int, model: LlamaConfig):
    """A run's configuration, with a rule for `down` where the pattern needs one."""
    solver, _, kind = solver.partition("+")
    allocation = prune.AllocationConfig(kind=kind or "uniform")
    settings = {"solver": solver, "seed": seed, "allocation": allocation}
    settings["pattern"] = pattern
    settings |= {"samples": SAMPLES, "sample_length": LENGTH}
    if ":" not in pattern:
        settings |= {"pattern": "unstructured", "sparsity": float(pattern)}
        return prune.PruneConfig(**settings)
    rules = prune.PruneConfig().rules
    chosen = parse(pattern, 0.0)
    try:
        chosen.check((model.d_model, model.d_ff))
    except InputError:
        other = f"unstructured@{chosen.sparsity}"
        rules = (("layers/mlp/down/kernel", other), *rules)
    return prune.PruneConfig(**settings, rules=rules)


def measure(directory: str, text: str, arguments: argparse.Namespace) -> list[dict]:
    """One row per pattern, solver and seed, and one for the dense model."""
    model = io.resolve(directory)
    if model.params is None or model.tokenizer is None:
        raise InputError(f"{directory}: needs weights and a tokenizer")
    middle = len(text) // 2
    calibration, _ = model.tokenizer.encode_with_bytes(text[:middle])
    ids, nbytes = model.tokenizer.encode_with_bytes(text[middle:])
    held_out = (ids[:EVALUATED], nbytes[:EVALUATED])

    def loss(params) -> float:
        window = min(WINDOW, model.config.max_seq_len)
        return evaluate.evaluate(params, model.config, *held_out, window=window).loss

    name = pathlib.Path(directory).name
    rows = [{"model": name, "solver": "dense", "loss": loss(model.params)}]
    runs = [
        (pattern, solver, seed)
        for pattern in arguments.patterns.split(",")
        for solver in arguments.solvers.split(",")
        for seed in range(arguments.seeds)
    ]
    for pattern, solver, seed in tqdm.tqdm(runs, desc=name, disable=None):
        config = prune_config(solver, pattern, seed, model.config)
        tokens = prune.sample_windows(calibration, SAMPLES, LENGTH, seed)
        params, _, matrices, *_ = prune.prune(
            model.params, None, tokens, model.config, config
        )
        error = statistics.mean(row["relative_error"] for row in matrices)
        row = {"model": name, "solver": solver, "pattern": pattern, "seed": seed}
        rows.append(row | {"loss": loss(params), "relative_error": error})
    return rows


def table(rows: list[dict], solvers: list[str]) -> str:
    """Mean losses of one model, a line per pattern."""
    dense = rows[0]["loss"]
    lines = [f"{rows[0]['model']}: dense loss {dense:.4f}"]
    lines.append("pattern " + "".join(f"{solver:>20s}" for solver in solvers))
    for pattern in dict.fromkeys(row["pattern"] for row in rows[1:]):
        losses = {
            solver: [
                row["loss"]
                for row in rows[1:]
                if (row["pattern"], row["solver"]) == (pattern, solver)
            ]
            for solver in solvers
        }
        means = {solver: statistics.mean(values) for solver, values in losses.items()}
        cells = []
        for solver in solvers:
            rival = means.get(BETTER_THAN.get(solver, ""))
            mark = "*" if rival is not None and means[solver] >= rival else " "
            spread = statistics.pstdev(losses[solver])
            cells.append(f"{means[solver]:.4f} ±{spread:.4f}{mark}".rjust(20))
        lines.append(f"{pattern:8s}" + "".join(cells))
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", required=True)
    parser.add_argument("--text", required=True)
    parser.add_argument("--solvers", default=",".join(SOLVERS))
    parser.add_argument("--patterns", default=PATTERNS)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--json")
    arguments = parser.parse_args()
    host.keep_freed_memory()  # as the launchers do
    text = pathlib.Path(arguments.text).read_text("utf-8")
    rows = []
    for directory in arguments.models.split(","):
        try:
            measured = measure(directory, text, arguments)
        except InputError as error:
            sys.exit(f"error: {error}")
        print(table(measured, arguments.solvers.split(",")), end="\n\n", flush=True)
        rows += measured
    if arguments.json:
        pathlib.Path(arguments.json).write_text(json.dumps(rows, indent=2))


if __name__ == "__main__":
    main()
