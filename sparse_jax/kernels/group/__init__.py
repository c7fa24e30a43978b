"""Groups of 16 inputs kept or dropped whole (block-sparse rows)."""

from sparse_jax.kernels.group.int4 import GROUP_INT4

FORMATS = (GROUP_INT4,)
