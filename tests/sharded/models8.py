"""The model that every mesh of 8 devices can train, and its run of 20 steps."""

import functools
import itertools

import numpy as np

from sparse_jax import models, train
from sparse_jax.mesh import MeshConfig
from sparse_jax.models import LlamaConfig
from sparse_jax.tree import from_paths, leaf_paths

MODEL = LlamaConfig(
    vocab_size=64, d_model=64, d_ff=128, n_layers=2, n_heads=8, n_kv_heads=8
)

CONFIG = train.TrainConfig(
    steps=20,
    batch_size=8,
    seq_len=16,
    checkpoint_every=10,
    log_every=1,
    schedule=train.ScheduleConfig(kind="constant", peak=1e-3),
)


def meshes(devices: int) -> list[MeshConfig]:
    """Every mesh of so many devices."""
    sizes = [n for n in range(1, devices + 1) if devices % n == 0]
    return [
        MeshConfig(data=data, fsdp=fsdp, tensor=devices // (data * fsdp))
        for data, fsdp in itertools.product(sizes, sizes)
        if devices % (data * fsdp) == 0
    ]


@functools.cache
def params_and_masks():
    """Random weights and masks of 70 %, on the host, so that every mesh takes them.

    NumPy makes them: to compile it would take longer than the training does.
    """
    rng, params, masks = np.random.default_rng(0), {}, {}
    for path, leaf in leaf_paths(models.abstract_params(MODEL)).items():
        params[path], masks[path] = np.ones(leaf.shape, np.float32), None
        if path.endswith(("/kernel", "/embedding")):
            params[path] = rng.normal(0, 0.02, leaf.shape).astype(np.float32)
        if path.startswith("layers/") and path.endswith("/kernel"):
            size = abs(params[path])
            masks[path] = size > np.quantile(size, 0.7)
    return from_paths(params), from_paths(masks)
