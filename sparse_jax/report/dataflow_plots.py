"""The plots of a simulation as PNG bytes, equal for equal numbers."""

from collections.abc import Callable, Mapping
from typing import Any

import matplotlib.style
import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sparse_jax.report.style import COLOURS, CONTROL, STYLE, legend, panels, png

Numbers = Mapping[str, Any]
Drawn = tuple[Figure, str] | None

BARS = {
    "compute": "compute",
    "imbalance": "load imbalance",
    "trigger": "triggers",
    "rows": "ends of rows",
    "stream": "weight stream",
    "other": "not sparse",
}


def draw_dataflow_plots(numbers: Numbers) -> dict[str, tuple[bytes, str]]:
    """Draws what there is something to see of.

    Args:
      numbers: of `sparse_jax.dataflow.sweep`.

    Returns:
      {file name: (PNG bytes, caption)}.
    """
    drawers: dict[str, Callable[[Numbers], Drawn]] = {
        "speedup.png": _draw_speedup,
        "time.png": _draw_time,
        "layers.png": _draw_layers,
        "sensitivity.png": _draw_sensitivity,
    }
    plots = {}
    # The user's own matplotlib settings would change the bytes.
    with matplotlib.style.context(["default", STYLE]):
        for name, draw in drawers.items():
            drawn = draw(numbers)
            if drawn is not None:
                plots[name] = (png(drawn[0]), drawn[1])
    return plots


def _draw_speedup(numbers: Numbers) -> Drawn:
    rows = sorted(numbers["rows"], key=lambda row: row["sparsity"])
    figure, axes = panels(2, width=3.6)
    sparsity_C = np.linspace(0, max(row["sparsity"] for row in rows), 100)
    for axis, part, title in (
        (axes[0], "matrices", "matrices"),
        (axes[1], "step", "whole step"),
    ):
        curve_C = _amdahl(sparsity_C, rows[-1], rows[-1][f"{part}_ideal"])
        axis.plot(100 * sparsity_C, curve_C, "--", color=CONTROL, label="ideal")
        _draw_points(axis, numbers, part)
        axis.set(title=title, xlabel="sparsity (%)")
        axis.set_ylim(bottom=0)
    axes[0].set_ylabel("speed-up over dense")
    legend(figure, axes)
    return figure, (
        "Speed-up over the dense model on the same machine. Bars span what the "
        "uncertain constants, all at once, leave possible."
    )


def _amdahl(
    sparsity_C: Float[np.ndarray, "C"], row: Numbers, ideal: float
) -> Float[np.ndarray, "C"]:
    """The ideal at other sparsities: one point gives the share that is sparse."""
    share = (1 - 1 / ideal) / row["sparsity"] if row["sparsity"] else 0.0
    return 1 / (1 - share * sparsity_C)


def _draw_points(axis: Axes, numbers: Numbers, part: str) -> None:
    """The simulated speed-ups, each with its range."""
    sparsities = [100 * row["sparsity"] for row in numbers["rows"]]
    values = [row[part] for row in numbers["rows"]]
    if numbers["sensitivity"]:
        ranges = numbers["sensitivity"]["ranges"]
        low, high = ([ends[end][part] for ends in ranges] for end in ("least", "most"))
        axis.vlines(sparsities, low, high, color=COLOURS[0], alpha=0.3, lw=6)
    axis.plot(sparsities, values, "o", color=COLOURS[0], label="simulated")


def _draw_time(numbers: Numbers) -> Drawn:
    steps = [numbers["dense"], *numbers["rows"]]
    figure, axes = panels(1, width=5.2)
    left = np.zeros(len(steps))
    names = ["dense", *(_label(row) for row in numbers["rows"])]
    for colour, (key, title) in zip(COLOURS, BARS.items(), strict=True):
        values = np.array([1000 * _bar(step, key) for step in steps])
        axes[0].barh(names, values, left=left, color=colour, label=title, height=0.7)
        left += values
    axes[0].invert_yaxis()
    axes[0].set_xlabel("time of a step (ms)")
    axes[0].grid(axis="y", visible=False)
    legend(figure, axes)
    return figure, "Where the time of a step goes."


def _label(row: Numbers) -> str:
    return f"{100 * row['sparsity']:.3g} %"


def _bar(step: Numbers, key: str) -> float:
    if key == "other":
        return sum(v for k, v in step["causes"].items() if k not in BARS)
    return step["causes"][key]


def _draw_layers(numbers: Numbers) -> Drawn:
    layers = numbers["rows"][0]["by_layer"]
    if all(row == layers[0] for row in layers):
        return None
    figure, axes = panels(2, width=3.6)
    index = range(len(layers))
    ideals = [row["speedup"] / row["efficiency"] for row in layers]
    axes[0].plot(index, ideals, "--", color=CONTROL, label="ideal")
    speedups = [row["speedup"] for row in layers]
    axes[0].plot(index, speedups, "o-", color=COLOURS[0], label="simulated")
    axes[0].set(title="speed-up of the matrices", xlabel="layer", ylim=(0, None))
    shares = [100 * row["efficiency"] for row in layers]
    axes[1].plot(index, shares, "o-", color=COLOURS[0])
    axes[1].set(title="of ideal (%)", xlabel="layer", ylim=(0, 105))
    for axis in axes:
        axis.set_xticks(range(0, len(layers), max(1, len(layers) // 8)))
    legend(figure, axes)
    return figure, "Speed-up and efficiency of every layer's matrices."


def _draw_sensitivity(numbers: Numbers) -> Drawn:
    if not numbers["sensitivity"]:
        return None
    found = numbers["sensitivity"]
    rows = [row for row in found["constants"] if row["reach"] > 1e-3]
    if not rows:
        return None
    used, sparsity = found["used"]["step"], found["sparsity"]
    figure, axes = panels(1, width=5.4, height=1.2 + 0.25 * len(rows))
    places = np.arange(len(rows))
    for colour, end, shift in ((COLOURS[1], "low", -0.2), (COLOURS[0], "high", 0.2)):
        change = [row[f"at_{end}"]["step"] - used for row in rows]
        where = places + shift  # both ends may lie on one side
        axes[0].barh(where, change, left=used, color=colour, height=0.36, label=end)
    axes[0].set_yticks(places, [row["name"] for row in rows])
    axes[0].axvline(used, color=CONTROL, lw=1)
    axes[0].invert_yaxis()
    axes[0].grid(axis="y", visible=False)
    axes[0].set_xlabel(f"speed-up of the step at {100 * sparsity:.3g} %")
    legend(figure, axes)
    return figure, (
        "Speed-up of the step with each uncertain constant at the low and at the high "
        "end of its range, alone."
    )
