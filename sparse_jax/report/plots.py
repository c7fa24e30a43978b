"""The plots of a report as PNG bytes, equal for equal numbers."""

import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sparse_jax.report.curves import Histories
from sparse_jax.report.equal_bits import draw_equal_bits
from sparse_jax.report.method_plots import (
    draw_comparison,
    draw_distill,
    draw_flip_layers,
    draw_masks,
)
from sparse_jax.report.style import (
    COLOURS,
    CONTROL,
    MARKERS,
    STYLE,
    legend,
    panels,
    png,
    words,
)
from sparse_jax.report.text import Report, domains, loss_of
from sparse_jax.report.training_plots import draw_gap, draw_loss

MOST = 8
"""Panels of models side by side."""


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
            ("equal_bits.png", draw_equal_bits),
            ("comparison.png", draw_comparison),
            ("loss.png", draw_loss),
            ("gap.png", draw_gap),
            ("masks.png", draw_masks),
            ("flip_layers.png", draw_flip_layers),
            ("distill.png", draw_distill),
            ("one_shot.png", _draw_one_shot),
            ("sparsity.png", draw_sparsity),
        ):
            drawn = draw(report, histories)
            if drawn is not None:
                plots[name] = (png(drawn[0]), drawn[1])
    return plots


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
    caption = "Zeros in each pruned matrix, by layer, in percent."
    if len(layers) > MOST:
        # Models of one pattern are often equal in this.
        equal: dict[tuple[float, ...], str] = {}
        for name, rows in layers.items():
            equal.setdefault(tuple(round(row["sparsity"], 3) for row in rows), name)
        caption += f" {len(layers)} models, of which {len(equal)} differ in this"
        caption += f", the first {MOST} of them." if len(equal) > MOST else "."
        layers = {name: layers[name] for name in [*equal.values()][:MOST]}
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
    return figure, caption


def _write_cells(axis: Axes, grid: np.ndarray) -> None:
    for (y, x), value in np.ndenumerate(grid):
        if np.isfinite(value):
            colour = "black" if value > 45 else "white"
            axis.text(x, y, f"{value:.1f}", ha="center", va="center", color=colour)


def _short(path: str) -> str:
    parts = [part for part in path.split("/") if part not in ("layers", "kernel")]
    return " ".join(parts)
