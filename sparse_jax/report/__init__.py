"""What a run found: report.md with its plots, report.json, and a printed summary."""

from sparse_jax.report.dataflow import dataflow_files, dataflow_summary
from sparse_jax.report.gap import add_gaps, is_control, relative_gap
from sparse_jax.report.headline import summary
from sparse_jax.report.markdown import markdown
from sparse_jax.report.pruning import (
    PRUNE_REPORT,
    pruning_files,
    pruning_report,
    pruning_summary,
)
from sparse_jax.report.writer import write_report

__all__ = [
    "PRUNE_REPORT",
    "add_gaps",
    "dataflow_files",
    "dataflow_summary",
    "is_control",
    "markdown",
    "pruning_files",
    "pruning_report",
    "pruning_summary",
    "relative_gap",
    "summary",
    "write_report",
]
