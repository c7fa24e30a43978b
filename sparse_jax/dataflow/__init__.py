"""What a weight-streaming machine would gain from sparsity."""

from sparse_jax.dataflow.counts import draw_counts, draw_mask, slice_counts
from sparse_jax.dataflow.find import drawn_masks, find
from sparse_jax.dataflow.machine import IDEAL, Constant, Machine
from sparse_jax.dataflow.masks import DrawnMasks, ModelMasks, NoMasks
from sparse_jax.dataflow.memory import fit
from sparse_jax.dataflow.presets import MACHINES, machine
from sparse_jax.dataflow.sweep import sweep
from sparse_jax.dataflow.throughput import Step, simulate
from sparse_jax.dataflow.timeline import Timeline, timeline
from sparse_jax.dataflow.workload import MODES, WEIGHT_GRADIENTS, Workload

__all__ = [
    "IDEAL",
    "MACHINES",
    "MODES",
    "WEIGHT_GRADIENTS",
    "Constant",
    "DrawnMasks",
    "Machine",
    "ModelMasks",
    "NoMasks",
    "Step",
    "Timeline",
    "Workload",
    "draw_counts",
    "draw_mask",
    "drawn_masks",
    "find",
    "fit",
    "machine",
    "simulate",
    "slice_counts",
    "sweep",
    "timeline",
]
