"""Unstructured sparsity: one bit for every weight, and the kept values."""

from sparse_jax.kernels.bitmask.floats import BITMASK_BFLOAT16, BITMASK_FLOAT32

FORMATS = (BITMASK_FLOAT32, BITMASK_BFLOAT16)
