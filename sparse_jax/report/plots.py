"""The plots of a report as PNG bytes, equal for equal numbers."""

from collections.abc import Sequence

import matplotlib.style
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
from sparse_jax.report.style import (
    COLOURS,
    CONTROL,
    MARKERS,
    STYLE,
    legend,
    panels,
    percent_ticks,
    png,
    stage_style,
    token_unit,
    words,
)
from sparse_jax.report.text import Report, domains, loss_of


def draw_plots(report: Report, histories: Histories) -> dict[str, tuple[bytes, str]]:
    """Draws what there are numbers for.

    Args:
      report: see `write_report`, with gaps.
      histories: rows of training by stage.

    Returns:
      {file name: (PNG bytes, caption)}; a plot without numbers is absent.
    """
    plots = {}
    # The user's own matplotlib settings would change the bytes.
    with matplotlib.style.context(["default", STYLE]):
        for name, draw in (
            ("loss.png", _draw_loss),
            ("gap.png", _draw_gap),
            ("one_shot.png", _draw_one_shot),
            ("sparsity.png", draw_sparsity),
        ):
            drawn = draw(report, histories)
            if drawn is not None:
                plots[name] = (png(drawn[0]), drawn[1])
    return plots


def _draw_loss(report: Report, histories: Histories) -> tuple[Figure, str] | None:
    models = [row for row in report.get("models", []) if row.get("tokens") is not None]
    names = domains(models)
    if not models and not any(histories.values()):
        return None
    figure, axes = panels(1 + len(names), sharex=True)
    unit, scale = token_unit(models, histories)
    for index, (stage, rows) in enumerate(histories.items()):
        tokens, loss = loss_curve(rows)
        colour, line = stage_style(stage, index)
        # The control's stages are one line.
        label = "dense control" if colour == CONTROL else words(stage)
        axes[0].plot(tokens / scale, loss, line, color=colour, label=label)
    axes[0].set(title="training", ylabel="loss (nats/token)")
    axes[0].set_ylim(*_loss_limits(histories))
    for axis, domain in zip(axes[1:], names, strict=True):
        _draw_heldout(axis, domain, models, histories, scale)
        axis.set(title=f"held-out {domain}")
    for axis in axes:
        axis.set_xlabel(f"training tokens, cumulative ({unit})")
        axis.set_xlim(left=0)
    legend(figure, axes)
    span = max((smoothing(rows) for rows in histories.values()), default=1)
    return figure, (
        "Loss over training tokens. Left: training loss, running mean over up to "
        f"{span} logged rows, its steep start cut off. Others: held-out loss; pruning "
        "lifts it at once, training brings it down again."
    )


def _loss_limits(histories: Histories) -> tuple[float | None, float | None]:
    """Limits that leave out the first tenth of all tokens, a steep fall."""
    curves = [loss_curve(rows) for rows in histories.values()]
    last = max((tokens[-1] for tokens, _ in curves if len(tokens)), default=0.0)
    late = [loss[tokens >= last / 10] for tokens, loss in curves]
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
    """One domain: the sparse way as a zigzag, and what stands beside it."""
    way = []
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
            axis.plot(
                x,
                loss,
                "o",
                color=COLOURS[0],
                markerfacecolor="white" if one_shot else COLOURS[0],
                label="pruned, not trained yet" if one_shot else "trained",
                zorder=3,
            )
            if one_shot:
                # To the left: training goes on to the right of the point.
                options = {"textcoords": "offset points", "ha": "right", "va": "center"}
                axis.annotate(words(name), (x, loss), (-7, 0), **options)
    if way:
        x, y = zip(*way, strict=True)
        axis.plot(x, y, ":", color=COLOURS[0], linewidth=1)
    for index, (stage, rows) in enumerate(histories.items()):
        tokens, loss = heldout_curve(rows, domain)
        colour, line = stage_style(stage, index)
        axis.plot(tokens / scale, loss, line, color=colour, linewidth=1)


def _draw_gap(report: Report, histories: Histories) -> tuple[Figure, str] | None:
    models = [
        row
        for row in report.get("models", [])
        if any(value is not None for value in row.get("gap", {}).values())
        and not row["name"].startswith("small")
    ]
    control = control_losses(histories)
    curves = {
        stage: gap_curve(rows, control)
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
        colour, _ = stage_style(stage, list(histories).index(stage))
        label = f"{words(stage)}, training"
        axis.plot(tokens / scale, 100 * gap, color=colour, label=label)
    for index, domain in enumerate(domains(models)):
        points = [
            (row["tokens"] / scale, 100 * row["gap"][domain])
            for row in models
            if row["gap"].get(domain) is not None
        ]
        if points:
            x, y = zip(*points, strict=True)
            axis.scatter(
                x,
                y,
                s=80 / (1 + 1.5 * index),  # a later domain fits inside an earlier one
                marker=MARKERS[index % len(MARKERS)],
                facecolor="white",
                edgecolor="#444444",
                linewidth=1.5,
                zorder=3,
                clip_on=False,
                label=f"held-out {domain}",
            )
    # Linear within 1 %, where results are decided; logarithmic beyond.
    axis.set_yscale("symlog", linthresh=1.0)
    percent_ticks(axis)
    axis.set_ylabel("gap to dense control (%)")
    axis.set_xlabel(f"training tokens, cumulative ({unit})")
    legend(figure, axes)
    return figure, (
        "Gap to the dense control at the same tokens: linear between -1 % and 1 %, "
        "logarithmic beyond. Lines: ratio of smoothed training losses on identical "
        "batches. Points: held-out text."
    )


def _draw_one_shot(report: Report, histories: Histories) -> tuple[Figure, str] | None:
    del histories
    rows = report.get("one_shot", [])
    if not rows:
        return None
    names = domains(rows)
    figure, axes = panels(len(names), sharey=True)
    methods = list(dict.fromkeys(row["method"] for row in rows))
    for axis, domain in zip(axes, names, strict=True):
        for index, method in enumerate(methods):
            points = sorted(
                (100 * row["sparsity"], loss_of(row, domain))
                for row in rows
                if row["method"] == method and loss_of(row, domain) is not None
            )
            if points:
                x, y = zip(*points, strict=True)
                colour, marker = COLOURS[index % 6], MARKERS[index % 6]
                axis.plot(
                    x, y, marker=marker, color=colour, label=f"{method}, one-shot"
                )
        for row in report.get("models", []):
            loss, sparsity = loss_of(row, domain), row.get("sparsity_pruned")
            if loss is None:
                continue
            if row["name"] == "dense":
                axis.axhline(
                    loss, color=CONTROL, linestyle="--", label="dense, unpruned"
                )
            elif sparsity and not row["name"].startswith(("one_shot", "small")):
                axis.plot(
                    100 * sparsity,
                    loss,
                    "*",
                    color=COLOURS[5],
                    markersize=11,
                    label="trained back",
                )
        axis.set(title=f"held-out {domain}", xlabel="zeros in pruned matrices (%)")
    axes[0].set_ylabel("loss (nats/token)")
    legend(figure, axes)
    return figure, (
        "Held-out loss of the dense model pruned once, without training, by method; "
        "stars are models that were trained after pruning."
    )


def draw_sparsity(report: Report, histories: Histories) -> tuple[Figure, str] | None:
    """The zeros of every matrix of `report["layers"]`, a panel for each model."""
    del histories
    layers = {name: rows for name, rows in report.get("layers", {}).items() if rows}
    if not layers:
        return None
    paths = list(dict.fromkeys(row["path"] for rows in layers.values() for row in rows))
    depth = 1 + max(row.get("layer") or 0 for rows in layers.values() for row in rows)
    width = max(2.6, min(0.5 * depth, 8.0))
    height = 1.1 + 0.26 * len(paths)
    figure, axes = panels(len(layers), width=width, height=height, sharey=True)
    for axis, (name, rows) in zip(axes, layers.items(), strict=True):
        grid = np.full((len(paths), depth), np.nan)
        for row in rows:
            grid[paths.index(row["path"]), row.get("layer") or 0] = row["sparsity"]
        axis.imshow(100 * grid, vmin=0, vmax=100, cmap="viridis", aspect="auto")
        axis.set(title=words(name), xlabel="layer")
        axis.grid(False)
        axis.set_xticks(range(0, depth, max(1, depth // 8)))
        if depth <= 8:
            _write_cells(axis, 100 * grid)
    axes[0].set_yticks(range(len(paths)), [_short(path) for path in paths])
    figure.colorbar(axes[-1].images[0], ax=list(axes), label="zeros (%)")
    return figure, "Zeros in each pruned matrix, by layer, in percent."


def _write_cells(axis: Axes, grid: np.ndarray) -> None:
    for (y, x), value in np.ndenumerate(grid):
        if np.isfinite(value):
            colour = "black" if value > 45 else "white"
            axis.text(x, y, f"{value:.1f}", ha="center", va="center", color=colour)


def _short(path: str) -> str:
    parts = [part for part in path.split("/") if part not in ("layers", "kernel")]
    return " ".join(parts)
