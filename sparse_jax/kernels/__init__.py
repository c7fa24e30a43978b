"""Matrices in storage formats, and kernels that multiply by them directly."""

from sparse_jax.kernels import attention
from sparse_jax.kernels.codes import code_differences, holds_codes, pack_codes
from sparse_jax.kernels.dot import IMPLEMENTATIONS, dot
from sparse_jax.kernels.format import PANEL, Format
from sparse_jax.kernels.group.build import from_codes, pack_groups
from sparse_jax.kernels.packed import Packed, pack
from sparse_jax.kernels.registry import FORMATS, find_format

__all__ = [
    "FORMATS",
    "IMPLEMENTATIONS",
    "PANEL",
    "Format",
    "Packed",
    "attention",
    "code_differences",
    "dot",
    "find_format",
    "from_codes",
    "holds_codes",
    "pack",
    "pack_codes",
    "pack_groups",
]
