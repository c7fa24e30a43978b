"""Patterns, masks, scores, schedules and reports of sparse weights."""

from sparse_jax.sparsity import masks, schedule, scores
from sparse_jax.sparsity.index_bits import index_bits
from sparse_jax.sparsity.parse import parse
from sparse_jax.sparsity.patterns import (
    NM,
    Block,
    Group,
    Pattern,
    Unstructured,
)
from sparse_jax.sparsity.report import sparsity_report, sparsity_rows

__all__ = [
    "NM",
    "Block",
    "Group",
    "Pattern",
    "Unstructured",
    "index_bits",
    "masks",
    "parse",
    "schedule",
    "scores",
    "sparsity_report",
    "sparsity_rows",
]
