"""Unstructured sparsity in int8, as balanced slots and a tail."""

from sparse_jax.kernels.ell.int8 import ELL_INT8

FORMATS = (ELL_INT8,)
