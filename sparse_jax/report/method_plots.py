"""Plots of what methods do: their masks, their teachers, and how they compare."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sparse_jax.report.comparison import Comparison, in_pattern, patterns
from sparse_jax.report.curves import (
    Curve,
    Histories,
    Rows,
    mean_curve,
    points,
    running_mean,
)
from sparse_jax.report.names import parse, title_of
from sparse_jax.report.style import (
    COLOURS,
    CONTROL,
    LINES,
    MARKERS,
    grid,
    legend,
    panels,
    token_unit,
    words,
)
from sparse_jax.report.text import Report

MOST_METHODS, MOST_PATTERNS, MOST_LAYERS = 10, 4, 8

Drawn = tuple[Figure, str] | None
Runs = Mapping[str | None, Mapping[str, Sequence[Rows]]]
"""Rows of all seeds by pattern and method."""


def draw_masks(report: Report, histories: Histories) -> Drawn:
    """How masks change over training: flips, decayed weights, norm of what is kept."""
    runs, note = _runs(histories, "flip_rate")
    if not runs:
        return None
    titles = {
        "flip_rate": "changed at a refresh (%)",
        "decayed_share": "pruned and near zero (%)",
        "kept_norm": "norm of kept weights, relative",
    }
    figure = _draw_runs(runs, titles, report, histories)
    return figure, (
        "Masks over training, mean over seeds. Left: share of mask entries that a "
        "refresh changed, on a logarithmic scale, no point where none did. Middle: "
        "share of pruned weights below a hundredth of the kept ones' root mean square. "
        "Right: 2-norm of the kept weights over its first value." + note
    )


def draw_distill(report: Report, histories: Histories) -> Drawn:
    """The parts of a distilled loss over training."""
    runs, note = _runs(histories, "divergence")
    if not runs:
        return None
    titles = {
        "cross_entropy": "cross-entropy (nats/token)",
        "divergence": "divergence from teacher (nats/token)",
        "features": "error of features",
    }
    measured = {
        name: title
        for name, title in titles.items()
        if any(row.get(name) is not None for rows in histories.values() for row in rows)
    }
    figure = _draw_runs(runs, measured, report, histories, smooth=True)
    return figure, (
        "Parts of the distilled loss over training, without their weights: running "
        "mean, then mean over seeds." + note
    )


def draw_flip_layers(report: Report, histories: Histories) -> Drawn:
    """Flip rate by layer, of the first stage whose masks move."""
    prefix = "flip_rate/layer_"
    layers_of = {
        stage: sorted(
            int(name.removeprefix(prefix))
            for name in {name for row in rows for name in row}
            if name.startswith(prefix)
        )
        for stage, rows in histories.items()
    }
    stage = next((stage for stage, layers in layers_of.items() if layers), None)
    if stage is None:
        return None
    layers = layers_of[stage]
    figure, axes = panels(1, width=5.5, height=3.4)
    unit, scale = token_unit(report.get("models", []), histories)
    spread = np.linspace(0, len(layers) - 1, min(MOST_LAYERS, len(layers))).round()
    for index in spread.astype(int):
        tokens, flips = points(histories[stage], f"{prefix}{layers[index]}")
        # The map's last colours are too light for a line on white.
        colour = colormaps["viridis"](0.85 * index / max(1, len(layers) - 1))
        label = f"layer {layers[index]}"
        style = {"color": colour, "label": label}
        _line(axes[0], (tokens, 100 * flips), scale, positive=True, **style)
    _log_if_positive(axes[0])
    axes[0].set(title=words(stage), ylabel="changed at a refresh (%)")
    axes[0].set_xlabel(f"training tokens, cumulative ({unit})")
    legend(figure, axes)
    return figure, (
        f"Share of mask entries that a refresh changed, by layer ({len(spread)} of "
        f"{len(layers)}), on a logarithmic scale. Stage {stage}."
    )


def draw_comparison(report: Report, histories: Histories) -> Drawn:
    """Mean gap of every method with its deviation over seeds, a panel by pattern."""
    del histories
    comparison = report.get("comparison") or {"groups": []}
    shown = {
        pattern: [
            group
            for group in in_pattern(comparison, pattern)
            # Far off, they would push the trained ones together.
            if group["gap"] is not None and not group["name"].startswith("one_shot")
        ]
        for pattern in patterns(comparison)
    }
    shown = {pattern: groups for pattern, groups in shown.items() if groups}
    if not shown:
        return None
    height = 1.3 + 0.32 * max(map(len, shown.values()))
    figure, axes = panels(len(shown), width=4.2, height=height)
    for axis, (pattern, groups) in zip(axes, shown.items(), strict=True):
        _draw_groups(axis, groups)
        axis.set(title=title_of(pattern), xlabel="gap to dense control (%)")
    legend(figure, axes)
    return figure, (
        "Gap of held-out loss to the dense control at the same tokens, mean over "
        "seeds; whiskers are one sample standard deviation. One-shot pruning, without "
        "training, is in the table alone."
    )


def _draw_groups(axis: Axes, groups: Sequence[Comparison]) -> None:
    names = list(groups[0]["domains"])
    for index, domain in enumerate(names):
        # Domains stand a little above one another, so that whiskers stay apart.
        shift = 0.18 * (index - (len(names) - 1) / 2)
        rows = [
            (row + shift, 100 * numbers["gap"], 100 * (numbers["gap_sd"] or 0))
            for row, group in enumerate(groups)
            if (numbers := group["domains"][domain])["gap"] is not None
        ]
        if not rows:
            continue
        y, mean, spread = zip(*rows, strict=True)
        axis.errorbar(
            mean,
            y,
            xerr=spread,
            fmt=MARKERS[index % len(MARKERS)],
            color=COLOURS[index % len(COLOURS)],
            markersize=5,
            capsize=2.5,
            label=f"held-out {domain}",
        )
    axis.axvline(0, color=CONTROL, linewidth=1)
    axis.set_yticks(range(len(groups)), [words(group["method"]) for group in groups])
    axis.set_ylim(len(groups) - 0.5, -0.5)


def _runs(histories: Histories, name: str) -> tuple[Runs, str]:
    """The stages whose rows have a number, and a sentence about those left out."""
    runs: dict[str | None, dict[str, list[Rows]]] = {}
    for stage, rows in histories.items():
        if any(row.get(name) is not None for row in rows):
            method, pattern, _ = parse(stage)
            runs.setdefault(pattern, {}).setdefault(method, []).append(rows)
    found = dict(list(runs.items())[:MOST_PATTERNS])
    kept = {
        pattern: dict(list(methods.items())[:MOST_METHODS])
        for pattern, methods in found.items()
    }
    total, left = (sum(map(len, group.values())) for group in (runs, kept))
    note = f" The first {left} of {total} methods." if left < total else ""
    return kept, note


def _draw_runs(
    runs: Runs,
    titles: Mapping[str, str],
    report: Report,
    histories: Histories,
    *,
    smooth: bool = False,
) -> Figure:
    """A row of panels for each pattern, a panel for each number, a line by method."""
    unit, scale = token_unit(report.get("models", []), histories)
    methods = list(dict.fromkeys(name for found in runs.values() for name in found))
    figure, axes = grid(len(runs), len(titles), height=2.9, sharex=True, sharey="col")
    for row, (pattern, found) in zip(axes, runs.items(), strict=True):
        for axis, (name, title) in zip(row, titles.items(), strict=True):
            for method, seeds in found.items():
                index = methods.index(method)
                curves = [_curve(rows, name, smooth) for rows in seeds]
                _line(
                    axis,
                    mean_curve([curve for curve in curves if len(curve[0])]),
                    scale,
                    positive=name == "flip_rate",
                    linestyle=LINES[index // len(COLOURS) % len(LINES)],
                    color=COLOURS[index % len(COLOURS)],
                    label=words(method),
                )
            axis.set(
                title=title if pattern is None else f"{title_of(pattern)}: {title}"
            )
            if name == "flip_rate":
                _log_if_positive(axis)
    for axis in axes[-1]:
        axis.set_xlabel(f"training tokens, cumulative ({unit})")
    legend(figure, [axis for row in axes for axis in row])
    return figure


def _curve(rows: Rows, name: str, smooth: bool) -> Curve:
    tokens, values = points(rows, name)
    if smooth:
        return tokens, running_mean(values, len(values) // 50 * 2 + 1)
    if name == "kept_norm":
        return tokens, values / values[0] if len(values) and values[0] else values
    return tokens, 100 * values


def _line(
    axis: Axes, curve: Curve, scale: int | float, *, positive: bool = False, **options
) -> None:
    """A line over tokens; `positive`: with a gap at zeros, for a logarithmic axis."""
    tokens, values = curve
    if positive:
        # A single refresh that changed something, between others, is a point.
        values = np.where(values > 0, values, np.nan)
        options |= {"marker": ".", "markersize": 3}
    if np.isfinite(values).any():
        axis.plot(tokens / scale, values, **options)


def _log_if_positive(axis: Axes) -> None:
    if axis.lines:
        axis.set_yscale("log")
