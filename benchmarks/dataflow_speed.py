"""How long the closed form of the weight stream takes.

    python benchmarks/dataflow_speed.py [COLUMNS ...]

times counting and timing of one 4096 x 11008 mask, then of every matrix of Llama-2-7B:
32 layers of 7 masks, each drawn anew at 70 % sparsity, in the three products of a
training step. Drawing the masks is timed apart. COLUMNS are elements of a PE row.
"""

import sys
import time

import numpy as np

from sparse_jax import dataflow
from sparse_jax.kernels.weight_stream import Costs

LAYER = {
    "q": (4096, 4096),
    "k": (4096, 4096),
    "v": (4096, 4096),
    "o": (4096, 4096),
    "gate": (11008, 4096),
    "up": (11008, 4096),
    "down": (4096, 11008),
}
"""Outputs and inputs of the matrices of a layer."""

COSTS = Costs(compute=12, trigger=1, row=20, reduction=762, rows_in_flight=16)
GRADIENT = Costs(compute=16, trigger=1, row=20, reduction=1172, rows_in_flight=16)


def run(counts_OC: np.ndarray, costs: Costs) -> int:
    return dataflow.timeline(
        counts_OC,
        weight_cycles=costs.weight,
        row_cycles=costs.row,
        reduction_cycles=costs.reduction,
        rows_in_flight=costs.rows_in_flight,
    ).total


def step_cycles(mask_OI: np.ndarray, columns: int) -> int:
    """Cycles of the three products of one matrix."""
    counts_OC = dataflow.slice_counts(mask_OI, columns)
    back_IC = dataflow.slice_counts(mask_OI.T, columns)
    return run(counts_OC, COSTS) + run(back_IC, COSTS) + run(counts_OC, GRADIENT)


def main(columns: int) -> None:
    rng = np.random.default_rng(0)
    mask_OI = rng.random((4096, 11008), np.float32) < 0.3
    start = time.perf_counter()
    run(dataflow.slice_counts(mask_OI, columns), COSTS)
    print(f"{columns} columns | one product of 4096 x 11008, seconds | ", end="")
    print(f"{time.perf_counter() - start:.2f}")
    drawing = counting = 0.0
    for _ in range(32):
        for shape in LAYER.values():
            start = time.perf_counter()
            mask_OI = rng.random(shape, np.float32) < 0.3
            drawn = time.perf_counter()
            step_cycles(mask_OI, columns)
            drawing += drawn - start
            counting += time.perf_counter() - drawn
    print(
        f"{columns} columns | all of Llama-2-7B, 3 products, seconds | {counting:.0f}"
    )
    print(f"{columns} columns | drawing its masks, seconds | {drawing:.0f}")


if __name__ == "__main__":
    for number in sys.argv[1:] or ["762"]:
        main(int(number))
