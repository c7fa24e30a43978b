"""Exactly N of every 16 inputs: 8:16, 5:16, 4:16 and every other N."""

from sparse_jax.kernels.n16.floats import N16_BFLOAT16, N16_FLOAT32
from sparse_jax.kernels.n16.ints import N16_INT4, N16_INT8

FORMATS = (N16_FLOAT32, N16_BFLOAT16, N16_INT8, N16_INT4)
