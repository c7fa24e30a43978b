"""Loss against bits: which zeros and which values are worth their bits.

A point is one model: a pattern of zeros, the bits of a kept value, and how it was
trained. Its bits are per original weight of the matrices in the layers, what says where
the kept ones are, scales and zero points included; once by the pattern's own
definition, and once as the packed file has them.
"""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sparse_jax.report.curves import Histories
from sparse_jax.report.names import parse
from sparse_jax.report.style import COLOURS, CONTROL, MARKERS, legend, panels
from sparse_jax.report.text import MISSING, Number, Report, number

Point = Mapping[str, Any]

DEFINITIONS = """\
- **own bits**: kept values, scales and zero points, and the index by the pattern's own
  definition: two bits for a kept weight of 2:4, else the smaller of a bitmap and
  log2 C(m, n) / m; **file**: the same matrices in the packed file.
- **added loss**: nats per token above the dense model in floats, mean over the domains;
  **int8 inputs**: what rounding the activations adds, in the packed file's own kernels.
- **decode**: tokens per second over dense float32, random weights of the size named
  with such zeros in the same storage type.
- **best**: no other row has both fewer bits and less loss (o: own bits, f: bits in the
  file), or both faster decoding and less loss (s)."""

_TICKS = (0.5, 1, 1.5, 2, 3, 4, 6, 8, 11, 16, 24, 32)
_COSTS = {"o": "own_bits", "f": "file_bits"}


def added_loss(point: Point, dense: Mapping[str, Number]) -> Number | None:
    """The mean over the domains of what a model loses to the dense one."""
    found = [point["loss"].get(domain) for domain in dense]
    if not found or any(loss is None for loss in found):
        return None
    pairs = zip(found, dense.values(), strict=True)
    return sum(loss - base for loss, base in pairs) / len(found)


def complete_points(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The points with `added_loss`, `added_by_inputs` and `best`.

    Args:
      found: `dense`, the dense model's loss by domain, and `points`: rows of name,
        family (the pattern, or "dense"), bits (of a kept value), zero_point, training,
        loss {domain: nats}, own_bits, file_bits, format, packed_loss {domain: nats},
        speedup; what is missing is None. Of names that differ in their seed alone the
        mean is taken.
    """
    dense, rows = found["dense"], []
    for point in _means(found["points"]):
        row = dict(point) | {"added_loss": added_loss(point, dense)}
        packed = {"loss": point.get("packed_loss") or {}}
        whole = added_loss(packed, dense)
        known = whole is not None and row["added_loss"] is not None
        row["added_by_inputs"] = whole - row["added_loss"] if known else None
        rows.append(row)
    for row in rows:
        marks = [mark for mark, cost in _COSTS.items() if _unbeaten(row, rows, cost)]
        marks += ["s"] * _unbeaten(row, rows, "speedup", -1)
        row["best"] = "".join(marks)
    return rows


def _means(points: Sequence[Point]) -> list[dict[str, Any]]:
    """One row for all seeds of a point, with the losses' means and `seeds`."""
    groups: dict[str, list[Point]] = {}
    for point in points:
        groups.setdefault(parse(point["name"]).group, []).append(point)
    rows = []
    for name, members in groups.items():
        row = dict(members[0]) | {"name": name, "seeds": len(members)}
        for key in ("loss", "packed_loss"):
            row[key] = {
                domain: statistics.fmean(member[key][domain] for member in members)
                for domain in members[0].get(key) or {}
            }
        rows.append(row)
    return rows


def _value(point: Point) -> str:
    return f"{point['bits']}{'z' if point.get('zero_point') else ''}"


def _unbeaten(row: Point, rows: Sequence[Point], cost: str, sign: int = 1) -> bool:
    def place(point: Point) -> tuple[Number, Number] | None:
        spent, lost = point.get(cost), point["added_loss"]
        return None if spent is None or lost is None else (sign * spent, lost)

    mine = place(row)
    others = [place(other) for other in rows]
    return mine is not None and not any(
        other[0] <= mine[0] and other[1] <= mine[1] and other != mine
        for other in others
        if other is not None
    )


def equal_bits_table(points: Sequence[Point]) -> tuple[list[str], list[list[str]]]:
    """Header and rows, by their own bits."""
    header = ["zeros", "value", "trained", "own bits", "file", "type", "added loss"]
    header += ["int8 inputs", "decode", "best"]
    rows = [
        [
            point["family"],
            f"{point['bits']} bits" + " and zero" * bool(point.get("zero_point")),
            (point["training"] or "no") + _seeds(point),
            number(point["own_bits"], ".2f"),
            number(point.get("file_bits"), ".2f"),
            point.get("format") or MISSING,
            number(point["added_loss"], "+.4f"),
            number(point["added_by_inputs"], "+.4f"),
            MISSING if point.get("speedup") is None else f"{point['speedup']:.1f}x",
            point["best"] or MISSING,
        ]
        for point in sorted(points, key=lambda p: (-p["own_bits"], p["added_loss"]))
    ]
    return header, rows


def _seeds(point: Point) -> str:
    return f", {point['seeds']} seeds" if point["seeds"] > 1 else ""


def draw_equal_bits(report: Report, histories: Histories) -> tuple[Figure, str] | None:
    """Loss against own bits, bits of the file, and decoding speed."""
    del histories
    points = (report.get("equal_bits") or {}).get("points", [])
    points = [p for p in points if p["added_loss"] is not None]
    if not points:
        return None
    sides = [
        ("own_bits", "bits per weight, by definition"),
        ("file_bits", "bits per weight, packed file"),
        ("speedup", "decoding over dense float32"),
    ]
    known = [side for side in sides if any(p.get(side[0]) for p in points)]
    figure, axes = panels(len(known), width=4.2, height=4.6, sharey=True)
    families = list(dict.fromkeys(point["family"] for point in points))
    for axis, (cost, label) in zip(axes, known, strict=True):
        for index, family in enumerate(families):
            _draw_family(axis, points, family, index, cost)
        _draw_frontier(axis, points, cost)
        axis.set_xscale("log", base=2)
        axis.set_yscale("symlog", linthresh=0.01)
        axis.set_xlabel(label)
        low, high = axis.get_xlim()
        ticks = [tick for tick in _TICKS if low <= tick <= high]
        axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axis.minorticks_off()
    axes[0].set_ylabel("loss above the dense model (nats/token)")
    legend(figure, axes)
    return figure, (
        "What a model loses for its size and its speed. A colour is a pattern of zeros,"
        " the number beside a point the bits of its values, z with zero points. Open"
        " points are not trained after pruning and rounding, pale ones block by block,"
        " full ones also end to end. The grey line joins those that no other beats."
    )


def _style(family: str, index: int) -> tuple[str, str]:
    if family == "dense":
        return CONTROL, "o"
    return COLOURS[index % len(COLOURS)], MARKERS[index % len(MARKERS)]


def _draw_family(
    axis: Axes, points: Sequence[Point], family: str, index: int, cost: str
) -> None:
    colour, marker = _style(family, index)
    mine = [p for p in points if p["family"] == family and p.get(cost) is not None]
    for fill, training in enumerate(dict.fromkeys(p["training"] for p in mine)):
        chosen = sorted(
            (p[cost], p["added_loss"], _value(p))
            for p in mine
            if p["training"] == training
        )
        x, y, values = zip(*chosen, strict=True)
        axis.plot(
            x,
            y,
            marker=marker,
            color=colour,
            markerfacecolor=("white", f"{colour}60", colour)[min(fill, 2)],
            linestyle=(":", "--", "-")[min(fill, 2)],
            linewidth=0.8,
            label=family if not training else None,
        )
        for place in zip(x, y, values, strict=True):
            axis.annotate(
                place[2],
                place[:2],
                xytext=(4, 3),
                textcoords="offset points",
                fontsize=7,
                color=colour,
            )


def _draw_frontier(axis: Axes, points: Sequence[Point], cost: str) -> None:
    mark = {"own_bits": "o", "file_bits": "f", "speedup": "s"}[cost]
    best = sorted((p[cost], p["added_loss"]) for p in points if mark in p["best"])
    if len(best) > 1:
        x, y = zip(*best, strict=True)
        axis.plot(x, y, color="0.6", linewidth=3, alpha=0.4, zorder=0)
