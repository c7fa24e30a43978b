import dataclasses

import jax
import numpy as np

from sparse_jax import train
from sparse_jax.models import LlamaConfig
from sparse_jax.types import Batch

MODEL = LlamaConfig(
    vocab_size=64, d_model=32, d_ff=64, n_layers=2, n_heads=4, n_kv_heads=2
)
LOSS = train.NextToken(model=MODEL)
OPTIMIZER = train.OptimizerConfig()


def make_batch(step: int, rows: int = 8, length: int = 16) -> Batch:
    tokens = np.random.default_rng(step).integers(0, 64, (rows, length + 1), np.int32)
    return Batch(
        tokens=tokens[:, :-1],
        targets=tokens[:, 1:],
        loss_weights=np.ones((rows, length), np.float32),
        segment_ids=np.zeros((rows, length), np.int32),
        positions=np.tile(np.arange(length, dtype=np.int32), (rows, 1)),
    )


def make_batches(start: int):
    while True:
        yield make_batch(start)
        start += 1


def tree_equal(a, b) -> bool:
    """Bit equality of two pytrees, random keys included."""

    def data(leaf):
        is_key = jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        return np.asarray(jax.random.key_data(leaf) if is_key else leaf)

    same = jax.tree.map(lambda x, y: np.array_equal(data(x), data(y)), a, b)
    return jax.tree.all(same)


CONFIG = train.TrainConfig(
    steps=12,
    batch_size=8,
    seq_len=16,
    checkpoint_every=4,
    log_every=1,
    schedule=train.ScheduleConfig(kind="constant", peak=1e-2),
    optimizer=OPTIMIZER,
)


def config(**fields) -> train.TrainConfig:
    return dataclasses.replace(CONFIG, **fields)
