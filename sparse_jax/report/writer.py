"""Writes report.json, report.md and its plots, each file atomically."""

import json
import math
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from sparse_jax.files import write_file
from sparse_jax.report.comparison import compare
from sparse_jax.report.equal_bits import complete_points
from sparse_jax.report.gap import add_gaps
from sparse_jax.report.markdown import markdown
from sparse_jax.report.plots import draw_plots
from sparse_jax.report.recovery import recovery
from sparse_jax.types import InputError


def write_report(
    report: Mapping[str, Any],
    histories: Mapping[str, Sequence[Mapping[str, Any]]],
    directory: str | os.PathLike[str],
) -> dict[str, Any]:
    """Writes report.md, report.json and the plots.

    Equal numbers give equal bytes: nothing carries a date. Entries that are missing are
    left out of the report, and numbers that are missing print as a dash.

    Args:
      report: plain data:
        name, config_sha256, python, command, versions: of the run;
        corpus, data, model, calibration, evaluation: facts, listed as they are;
        models: rows of name, sparsity_pruned, sparsity_total, tokens (cumulative),
          domains {domain: {loss, perplexity, bits_per_byte, tokens, bytes}}, gap
          (added where it is missing), bits_per_weight, seconds, tokens_per_second,
          training_flops_dense_equivalent, training_flops_nonzero;
        one_shot: rows of method, sparsity, domains;
        scores: rows of model, task, metrics {name: {value, stderr}}; with `finetuned`
          True their recovery, and that in loss, is added as `recovery`;
        layers: {model name: rows of path, layer, sparsity};
        comparisons: questions about methods, see `compare`; the answers and the means
          over seeds are added as `comparison`;
        packed: rows of the stages that pack, see `packed.packed_table`;
        equal_bits: see `equal_bits.complete_points`;
        dataflow: of `sparse_jax.dataflow.sweep`, with the name of the `model`.
      histories: rows of `train.metrics` by stage, `tokens` cumulative; those whose name
        begins with `dense_control` are the control's. Names of stages and models are
        taken apart as <method>[_<pattern>][_seed<N>], see `names.parse`.
      directory: where the files go; made if it is missing.

    Returns:
      The report as written to report.json.

    Raises:
      InputError: an entry lacks what identifies it, or the disk cannot be written.
    """
    report = complete(report)
    directory = pathlib.Path(directory)
    captions = {}
    for name, (png, caption) in draw_plots(report, histories).items():
        write_file(directory / name, png)
        captions[name] = caption
    write_file(directory / "report.md", markdown(report, captions).encode())
    text = json.dumps(report, indent=2, allow_nan=False) + "\n"
    write_file(directory / "report.json", text.encode())
    return report


def complete(report: Mapping[str, Any]) -> dict[str, Any]:
    """The report as plain JSON data with its gaps; NaN and infinities become null."""
    for section, keys in (
        ("models", ("name",)),
        ("one_shot", ("method", "sparsity")),
        ("comparisons", ("question", "with", "without")),
    ):
        for index, row in enumerate(report.get(section, [])):
            for key in keys:
                if row.get(key) is None:
                    raise InputError(
                        f"report.{section}[{index}] has no {key!r}, found "
                        f"{sorted(row)}; every row needs {list(keys)}"
                    )
    values = plain(report)
    if values.get("equal_bits"):
        values["equal_bits"]["points"] = complete_points(values["equal_bits"])
    if "models" in values:
        with_gaps = add_gaps(values["models"])
        values["models"] = [
            row if row.get("gap") else full
            for row, full in zip(values["models"], with_gaps, strict=True)
        ]
        found = compare(values["models"], values.get("comparisons", []))
        if found is not None:
            values["comparison"] = found
        if values.get("finetuned"):
            scores = values.get("scores", [])
            values["recovery"] = recovery(values["models"], scores)
    return values


def plain(value: Any) -> Any:
    """Plain JSON data: arrays' scalars as numbers, NaN and infinities as null."""
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
