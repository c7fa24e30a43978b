"""What packing did to a model: every tensor, the parts of the file, and a table."""

import itertools
import math
from collections.abc import Sequence
from typing import Any

Row = dict[str, Any]

PARTS = (
    "packed matrices",
    "embedding",
    "embedding and head",
    "head",
    "norms and biases",
    "tokenizer",
    "header, index, config and gaps",
)
"""The parts of a packed file."""


def add_totals(tensors: Sequence[Row], tokenizer: int, size: int) -> dict[str, Any]:
    """The account of a packed file.

    Args:
      tensors: a row each: its name, leaf path and layer, `part`, shape, format,
        sparsity, `bits_per_weight`, those that the storage type's definition gives
        (`expected_bits`), bytes before and after, and a note where its format is not
        the usual one.
      tokenizer: bytes of the tokenizer's files.
      size: bytes of the packed file.

    Returns:
      `tensors`, and `totals`: part -> tensors, weights, bytes before and after, bits
      per weight; "file" is all of them.
    """
    totals: dict[str, Row] = {}
    for part in PARTS:
        rows = [row for row in tensors if row["part"] == part]
        if rows:
            totals[part] = _total(rows)
    kept = {"tensors": 0, "weights": 0, "bits_per_weight": None}
    totals["tokenizer"] = kept | {"bytes_before": tokenizer, "bytes_after": tokenizer}
    counted = sum(total["bytes_after"] for total in totals.values())
    totals[PARTS[-1]] = kept | {"bytes_before": 0, "bytes_after": size - counted}
    whole = _total(list(tensors))
    whole["bytes_before"] += tokenizer
    whole["bytes_after"] = size
    totals["file"] = whole | {"bits_per_weight": 8 * size / whole["weights"]}
    return {"tensors": list(tensors), "totals": totals}


def pack_table(report: dict[str, Any]) -> str:
    """The account as text: matrices of one kind and format in one line, then totals."""
    lines = [
        f"{report['model']}",
        f"format {report['format']}: weights {report['checkpoint_dtype']} -> "
        f"{report['dtype']}, head {report['head']}",
        "",
        f"{'tensor':<28}{'format':<18}{'layers':>8}{'zeros':>9}{'bits':>8}"
        f"{'KB before':>12}{'after':>10}",
    ]
    for rows in _groups(report["tensors"]):
        total = _total(rows)
        lines.append(
            _line(rows[0]["path"], rows[0]["format"], _layers(rows), total)
            + (f"  {rows[0]['note']}" if rows[0]["note"] else "")
        )
    lines.append("")
    for part, total in report["totals"].items():
        lines.append(_line(part, "", "", total))
    return "\n".join(lines)


def _groups(tensors: Sequence[Row]) -> list[list[Row]]:
    """Tensors with the same path, format and note; neighbours in their layers."""

    def key(row: Row) -> tuple:
        return row["path"], row["part"], row["format"], row["note"]

    ordered: dict[tuple, list[Row]] = {}
    for row in tensors:
        ordered.setdefault(key(row), []).append(row)
    return list(ordered.values())


def _layers(rows: Sequence[Row]) -> str:
    """The layers of some rows: "0-3,7".

    Example:
      >>> _layers([{"layer": n} for n in (0, 1, 2, 5)])
      '0-2,5'
    """
    layers = [row["layer"] for row in rows if row["layer"] is not None]
    runs = itertools.groupby(enumerate(layers), lambda pair: pair[1] - pair[0])
    ends = [[layer for _, layer in run] for _, run in runs]
    texts = [f"{e[0]}-{e[-1]}" if len(e) > 1 else f"{e[0]}" for e in ends]
    return ",".join(texts)


def _total(rows: Sequence[Row]) -> Row:
    weights = sum(math.prod(row["shape"]) for row in rows)
    zeros = sum(row["sparsity"] * math.prod(row["shape"]) for row in rows)
    after = sum(row["bytes_after"] for row in rows)
    return {
        "tensors": len(rows),
        "weights": weights,
        "sparsity": zeros / weights,
        "bits_per_weight": 8 * after / weights,
        "bytes_before": sum(row["bytes_before"] for row in rows),
        "bytes_after": after,
    }


def _line(name: str, kind: str, layers: str, total: Row) -> str:
    zeros = f"{100 * total['sparsity']:.2f} %" if total.get("sparsity") else ""
    bits = "" if total["bits_per_weight"] is None else f"{total['bits_per_weight']:.3f}"
    return (
        f"{name:<28}{kind:<18}{layers:>8}{zeros:>9}{bits:>8}"
        f"{total['bytes_before'] / 1e3:>12,.1f}{total['bytes_after'] / 1e3:>10,.1f}"
    )
