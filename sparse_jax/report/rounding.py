"""What a pruning report says of matrices that were rounded to integer grids."""

from collections.abc import Mapping, Sequence
from typing import Any

from sparse_jax.report.markdown import table
from sparse_jax.report.pruning_plots import short
from sparse_jax.report.text import number, percent

Row = Mapping[str, Any]


def is_rounded(report: Mapping[str, Any]) -> bool:
    """Whether the run that a pruning report tells of rounded anything."""
    return report["settings"].get("quantize") is not None


def bits_header(report: Mapping[str, Any]) -> list[str]:
    """The column that `bits_cell` fills."""
    return ["bits"] if is_rounded(report) else []


def bits_cell(row: Row) -> list[str]:
    """Bits per weight, where the report counts them."""
    return [number(row["bits"], ".3f")] if "bits" in row else []


def mean_bits(rows: Sequence[Row]) -> dict[str, float]:
    """Bits per weight over several matrices, if they are counted."""
    if not rows or "bits" not in rows[0]:
        return {}
    weights = sum(row["weights"] for row in rows)
    return {"bits": sum(row["bits"] * row["weights"] for row in rows) / weights}


def rounding_sentence(report: Mapping[str, Any]) -> str:
    """What was rounded to what, and what it takes."""
    settings = report["settings"]["quantize"]
    rows, grid = report["matrices"], settings["grid"]
    rounded = sum(row["left_out"] is None for row in rows)
    scales = f"a scale per {grid['group']} inputs" if grid["group"] else "a scale a row"
    kind = "symmetric" if grid["symmetric"] else "asymmetric"
    text = (
        f"{rounded} of {len(rows)} matrices are rounded to {grid['bits']} bits "
        f"({settings['method']}, {kind}, {scales}): {report['total']['bits']:.3f} bits "
        "per weight of all of them"
    )
    if settings["activations"] is not None:
        text += f"; their inputs are rounded to 8 bits, {settings['activations']}"
    return text + "."


def left_out_section(report: Mapping[str, Any]) -> str:
    """The matrices that stay in floats, and why; nothing where there are none."""
    rows = [row for row in report["matrices"] if row.get("left_out") is not None]
    if not is_rounded(report) or not rows:
        return ""
    lines = []
    for row in rows:
        cells = [str(row["layer"]), short(row["path"]), percent(row["sparsity"])]
        lines.append([*cells, *bits_cell(row), row["left_out"]])
    header = ["layer", "matrix", "zeros", "bits", "why"]
    return f"## Left in floats\n\n{table(header, lines)}"


ROUNDING_DEFINITIONS = """\
- Bits are per weight of a matrix as it was before pruning: codes of what is kept, the
  index of which weights those are (by the pattern's definition: N:M at most
  log2 C(M, N) / M, a bit for every whole unit, else a bitmap), scales, zero points,
  low-rank factors (16 bits an entry, or those of their grid) and outliers (48 bits
  each: a float16 and its place).
- A block's training is judged by the relative error of its outputs against the dense
  model's; errors of matrices are those of the solve before it."""
