"""The peak learning rates of `configs/sparse70.py`, tuned alike for sparse and control.

    python benchmarks/learning_rates.py [--peaks=7e-4,1.2e-3,2e-3,2.8e-3] [--json=FILE]

Runs the default recipe's stages once for every peak, for the sparse model and for its
dense control, on one dense parent, and prints their held-out losses: the recipe takes
the best of each row. Resumable: run it again after an interruption.
"""

import argparse
import dataclasses
import json
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

from configs import sparse70
from sparse_jax import host, recipe
from sparse_jax.recipe import Pretrain, Prune, Recipe


def sweep(base: Recipe, peaks: list[float]) -> Recipe:
    """A recipe with one sparse chain and one control per peak."""
    stages = {name: base.stages[name] for name in ("dense", "one_shot_50")}
    for number, peak in enumerate(peaks):
        first, second = (
            dataclasses.replace(base.stages[name], peak=peak)
            for name in ("trained_50", "trained_70")
        )

        def name(stage, number=number):
            return f"{stage}_{number}"

        stages |= {
            name("trained_50"): first,
            name("one_shot_70"): Prune(parent=name("trained_50"), sparsity=0.7),
            name("trained_70"): dataclasses.replace(second, parent=name("one_shot_70")),
            name("control_50"): dataclasses.replace(first, parent="dense"),
            name("control_70"): dataclasses.replace(second, parent=name("control_50")),
        }
    assert all(isinstance(s, Pretrain | Prune) for s in stages.values())
    return dataclasses.replace(
        base,
        name="learning_rates",
        stages=stages,
        order=tuple(stages),
        final=name("trained_70"),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peaks", default="7e-4,1.2e-3,2e-3,2.8e-3")
    parser.add_argument("--workdir", default="runs/learning_rates")
    parser.add_argument("--json")
    arguments = parser.parse_args()
    host.keep_freed_memory()  # as the launchers do
    peaks = [float(peak) for peak in arguments.peaks.split(",")]
    report = recipe.run(sweep(sparse70.embedded(), peaks), arguments.workdir)
    models = {row["name"]: row["domains"] for row in report["models"]}
    rows = [
        {
            "model": model,
            "peak": peak,
            **{d: n["loss"] for d, n in models[f"{model}_{number}"].items()},
        }
        for model in ("trained_70", "control_70")
        for number, peak in enumerate(peaks)
    ]
    for row in rows:
        losses = "  ".join(f"{d} {v:.4f}" for d, v in list(row.items())[2:])
        print(f"{row['model']:12s} peak {row['peak']:<8g} {losses}")
    if arguments.json:
        pathlib.Path(arguments.json).write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
