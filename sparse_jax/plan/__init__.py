"""Plans a run: whether its step fits a machine, and how long it takes there."""

from sparse_jax.plan.kernels import compile_kernels
from sparse_jax.plan.machines import Machine, gpus, topology
from sparse_jax.plan.planning import plan
from sparse_jax.plan.text import show

__all__ = ["Machine", "compile_kernels", "gpus", "plan", "show", "topology"]
