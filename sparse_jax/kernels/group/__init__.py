"""Groups of 16 inputs kept or dropped whole (block-sparse rows)."""

from sparse_jax.kernels.group.int4 import GROUP_INT4
from sparse_jax.kernels.group.u8 import GROUP_INT4_U8

FORMATS = (GROUP_INT4, GROUP_INT4_U8)
