"""A job small enough to trace and compile in a test."""

from sparse_jax import train
from sparse_jax.mesh import MeshConfig
from sparse_jax.models import Compute, LlamaConfig
from sparse_jax.plan.job import Job
from sparse_jax.prune import PruneConfig

JOB = Job(
    model=LlamaConfig(
        vocab_size=2048, d_model=256, d_ff=512, n_layers=3, n_heads=8, n_kv_heads=8
    ),
    compute=Compute(dtype="float32", attention="scores", remat="block"),
    mesh=MeshConfig(fsdp=8),
    batch_size=32,
    seq_len=256,
    accumulate=1,
    optimizer=train.OptimizerConfig(),
    isolate_documents=False,
    pattern_rules=tuple(PruneConfig().pattern_rules()),
)
