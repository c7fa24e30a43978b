"""Dense weights: float32, bfloat16, int8 with a scale per row, int4, int2 by groups."""

from sparse_jax.kernels.dense.floats import DENSE_BFLOAT16, DENSE_FLOAT32
from sparse_jax.kernels.dense.groups import DENSE_INT2, DENSE_INT4
from sparse_jax.kernels.dense.ints import DENSE_INT8

FORMATS = (DENSE_FLOAT32, DENSE_BFLOAT16, DENSE_INT8, DENSE_INT4, DENSE_INT2)
