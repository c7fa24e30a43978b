"""Loss over training, and the gap to the dense control: what a stage learns."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sparse_jax.report.curves import (
    Histories,
    control_losses,
    gap_curve,
    heldout_curve,
    loss_curve,
    smoothing,
)
from sparse_jax.report.gap import is_control
from sparse_jax.report.names import parse
from sparse_jax.report.style import (
    COLOURS,
    CONTROL,
    MARKERS,
    legend,
    panels,
    percent_ticks,
    stage_style,
    token_unit,
    words,
)
from sparse_jax.report.text import Report, domains, loss_of

MOST = 10
"""Stages that a picture has room for."""


def drawn(report: Report, histories: Histories) -> tuple[Report, Histories, str]:
    """What a picture of single stages has room for.

    Of more than `MOST` stages: the controls, and those with the lowest gaps, of the
    first seed alone. Models that were not trained stay, those of other stages go.

    Returns:
      The report and the histories without what is not drawn, and the sentence that
      says so, empty where everything is.
    """
    if len(histories) <= MOST:
        return report, histories, ""
    seeds = [seed for name in histories if (seed := parse(name).seed) is not None]
    first = min(seeds, default=None)
    names = [name for name in histories if parse(name).seed in (None, first)]
    gaps = {
        row["name"]: float(np.mean(known))
        for row in report.get("models", [])
        if (known := [gap for gap in row.get("gap", {}).values() if gap is not None])
    }
    names.sort(key=lambda name: (not is_control(name), gaps.get(name, np.inf)))
    kept = {name: rows for name, rows in histories.items() if name in names[:MOST]}
    models = [
        row
        for row in report.get("models", [])
        if row["name"] in kept or row["name"] not in histories
    ]
    note = f" {len(kept)} of {len(histories)} trained stages: the controls and those "
    note += "with the lowest gaps"
    note += "." if first is None else f", of seed {first}."
    return {**report, "models": models}, kept, note


def _branches(histories: Histories) -> bool:
    """Whether several stages trained to the same tokens, from one parent."""
    ends = [
        rows[-1].get("tokens")
        for name, rows in histories.items()
        if rows and not is_control(name) and not name.startswith("small")
    ]
    return len(set(ends)) < len(ends)


def draw_loss(report: Report, histories: Histories) -> tuple[Figure, str] | None:
    """Training loss of every stage, and held-out loss of every model, over tokens."""
    report, histories, note = drawn(report, histories)
    models = [row for row in report.get("models", []) if row.get("tokens") is not None]
    names = domains(models)
    if not models and not any(histories.values()):
        return None
    if _branches(histories):  # they are far above, and the table has them
        models = [row for row in models if not row["name"].startswith("one_shot")]
    figure, axes = panels(1 + len(names), sharex=True)
    unit, scale = token_unit(models, histories)
    for index, (stage, rows) in enumerate(histories.items()):
        tokens, loss = loss_curve(rows)
        colour, line = stage_style(stage, index)
        # The control's stages are one line.
        label = "dense control" if colour == CONTROL else words(stage)
        axes[0].plot(tokens / scale, loss, line, color=colour, label=label)
    axes[0].set(title="training", ylabel="loss (nats/token)")
    start, last = _branching_span(histories) if _branches(histories) else (0.0, 0.0)
    axes[0].set_ylim(*_loss_limits(histories, start))
    for axis, domain in zip(axes[1:], names, strict=True):
        _draw_heldout(axis, domain, models, histories, scale)
        axis.set(title=f"held-out {domain}")
    for axis in axes:
        axis.set_xlabel(f"training tokens, cumulative ({unit})")
        axis.set_xlim(left=0)
        if start:
            margin = (last - start) / 10
            axis.set_xlim((start - margin) / scale, (last + margin / 2) / scale)
    legend(figure, axes)
    span = max((smoothing(rows) for rows in histories.values()), default=1)
    return figure, (
        "Loss over training tokens. Left: training loss, running mean over up to "
        f"{span} logged rows, its steep start cut off. Others: held-out loss; "
        + (
            "the models were trained side by side from one parent."
            if _branches(histories)
            else "pruning lifts it at once, training brings it down again."
        )
        + note
    )


def _branching_span(histories: Histories) -> tuple[float, float]:
    """Tokens where the first child of the dense parent begins, and the last ends."""
    tokens = [
        loss_curve(rows)[0] for name, rows in histories.items() if name != "dense"
    ]
    found = np.concatenate([*tokens, np.zeros(0)])
    return (found.min(), found.max()) if len(found) else (0.0, 0.0)


def _loss_limits(
    histories: Histories, start: float
) -> tuple[float | None, float | None]:
    """Limits that leave out a steep fall, a tenth of the tokens from `start`."""
    curves = [loss_curve(rows) for rows in histories.values()]
    last = max((tokens[-1] for tokens, _ in curves if len(tokens)), default=0.0)
    begin = start + (last - start) / 10
    late = [loss[tokens >= begin] for tokens, loss in curves]
    values = np.concatenate([*late, np.zeros(0)])
    if not len(values):
        return None, None
    margin = 0.05 * (values.max() - values.min()) + 1e-3
    return values.min() - margin, values.max() + margin


def _draw_heldout(
    axis: Axes,
    domain: str,
    models: Sequence[Report],
    histories: Histories,
    scale: int | float,
) -> None:
    """One domain: the sparse way as a zigzag, and what stands beside it.

    Models that were trained side by side are no way: each has the colour of its stage.
    """
    way, branches = [], _branches(histories)
    for row in models:
        name, loss, x = row["name"], loss_of(row, domain), row["tokens"] / scale
        if loss is None:
            continue
        if name.startswith("small"):
            axis.plot(x, loss, "*", color=COLOURS[5], label=words(name))
        elif name != "dense" and is_control(name):
            axis.plot(x, loss, "D", color=CONTROL, label="dense control, evaluated")
        else:
            way.append((x, loss))
            one_shot = name.startswith("one_shot")
            label = "pruned, not trained yet" if one_shot else "trained"
            colour = COLOURS[0]
            if branches and name in histories:
                colour, label = _colour(name, histories), ""
            face = "white" if one_shot else colour
            axis.plot(x, loss, "o", color=colour, mfc=face, label=label, zorder=3)
            if one_shot:
                # To the left: training goes on to the right of the point.
                options = {"textcoords": "offset points", "ha": "right", "va": "center"}
                axis.annotate(words(name), (x, loss), (-7, 0), **options)
    if way and not branches:
        x, y = zip(*way, strict=True)
        axis.plot(x, y, ":", color=COLOURS[0], linewidth=1)
    for index, (stage, rows) in enumerate(histories.items()):
        tokens, loss = heldout_curve(rows, domain)
        colour, line = stage_style(stage, index)
        axis.plot(tokens / scale, loss, line, color=colour, linewidth=1)


def draw_gap(report: Report, histories: Histories) -> tuple[Figure, str] | None:
    """How far training and held-out loss are from the dense control, over tokens."""
    report, histories, note = drawn(report, histories)
    models = [
        row
        for row in report.get("models", [])
        if any(value is not None for value in row.get("gap", {}).values())
        and not row["name"].startswith("small")
    ]
    curves = {
        stage: gap_curve(rows, control_losses(histories, parse(stage).seed))
        for stage, rows in histories.items()
        if not is_control(stage) and not stage.startswith("small")
    }
    curves = {stage: curve for stage, curve in curves.items() if len(curve[0])}
    if not models and not curves:
        return None
    figure, axes = panels(1, width=6.5, height=3.8)
    axis = axes[0]
    unit, scale = token_unit(report.get("models", []), histories)
    axis.axhline(0, color=CONTROL, linewidth=1)
    for stage, (tokens, gap) in curves.items():
        colour, line = stage_style(stage, list(histories).index(stage))
        label = f"{words(stage)}, training"
        axis.plot(tokens / scale, 100 * gap, line, color=colour, label=label)
    for index, domain in enumerate(domains(models)):
        _draw_gap_points(axis, index, domain, models, histories, scale)
    # Linear within 1 %, where results are decided; logarithmic beyond.
    axis.set_yscale("symlog", linthresh=1.0)
    percent_ticks(axis)
    axis.set_ylabel("gap to dense control (%)")
    axis.set_xlabel(f"training tokens, cumulative ({unit})")
    legend(figure, axes)
    return figure, (
        "Gap to the dense control at the same tokens: linear between -1 % and 1 %, "
        "logarithmic beyond. Lines: ratio of smoothed training losses on identical "
        "batches. Points: held-out text." + note
    )


def _draw_gap_points(
    axis: Axes,
    index: int,
    domain: str,
    models: Sequence[Report],
    histories: Histories,
    scale: int | float,
) -> None:
    rows = [row for row in models if row["gap"].get(domain) is not None]
    if not rows:
        return
    style: dict[str, Any] = {
        "s": 80 / (1 + 1.5 * index),  # a later domain fits inside an earlier one
        "marker": MARKERS[index % len(MARKERS)],
        "facecolor": "white",
        "linewidth": 1.5,
    }
    grey, branches = "#444444", _branches(histories)
    colours = [
        _colour(row["name"], histories)
        if branches and row["name"] in histories
        else grey
        for row in rows
    ]
    x = [row["tokens"] / scale for row in rows]
    y = [100 * row["gap"][domain] for row in rows]
    axis.scatter(x, y, edgecolor=colours, zorder=3, clip_on=False, **style)
    axis.scatter([], [], edgecolor=grey, label=f"held-out {domain}", **style)


def _colour(stage: str, histories: Histories) -> str:
    return stage_style(stage, list(histories).index(stage))[0]
