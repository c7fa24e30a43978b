"""How unevenly a pruner leaves the weights of outputs and inputs.

    python benchmarks/mask_spread.py DIR [DIR ...]

reads `masks.safetensors` of Hugging Face directories and prints, for each kind of
matrix, the standard deviation of the log odds that a weight is kept: between outputs
(rows of the matrix), between inputs, and what is left of a block of 128 inputs, whose
count SparseGPT fixes. Chance alone is taken off: of rows with I weights of which a
fraction p is kept, p (1 - p) / I of the variance of the kept fraction. These figures
are the constants OUTPUT_SPREAD and INPUT_SPREAD of sparse_jax/dataflow/counts.py.
"""

import sys
from collections import defaultdict

import numpy as np

from sparse_jax import io, tree
from sparse_jax.types import InputError


def log_odds_variance(kept_N: np.ndarray, n_weights: int) -> float:
    """Variance of log odds between groups of n_weights, chance taken off."""
    mean = kept_N.mean()
    chance = mean * (1 - mean) / n_weights
    return (kept_N.var() - chance) / (mean * (1 - mean)) ** 2


def main(folders: list[str]) -> None:
    spread = defaultdict(list)
    for folder in folders:
        masks = io.resolve(folder).masks
        for path, mask in tree.leaf_paths(masks or {}).items():
            for layer_IO in [] if mask is None else np.asarray(mask):
                n_inputs, n_outputs = layer_IO.shape
                blocks = [
                    layer_IO[first : first + 128].mean()
                    for first in range(0, n_inputs, 128)
                ]
                spread[path.split("/")[-2]].append(
                    (
                        log_odds_variance(layer_IO.mean(0), n_inputs),
                        log_odds_variance(layer_IO.mean(1), n_outputs),
                        np.ptp(blocks),
                    )
                )
    if not spread:
        raise InputError(f"{folders}: no masks; give directories of pruned models")
    spread["all"] = [row for rows in spread.values() for row in rows]
    print("matrix | log odds, sd between outputs | between inputs | blocks differ by")
    print("---|---|---|---")
    for name, rows in spread.items():
        outputs, inputs, blocks = np.mean(rows, axis=0)
        sd = [max(0.0, variance) ** 0.5 for variance in (outputs, inputs)]
        print(f"{name} | {sd[0]:.2f} | {sd[1]:.2f} | {blocks:.4f}")


if __name__ == "__main__":
    main(sys.argv[1:])
