"""The plots of a pruning report as PNG bytes, equal for equal numbers."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.style
from matplotlib.figure import Figure

from sparse_jax.report.plots import draw_sparsity
from sparse_jax.report.style import COLOURS, MARKERS, STYLE, legend, panels, png

Rows = Sequence[Mapping[str, Any]]


def draw_pruning_plots(rows: Rows) -> dict[str, tuple[bytes, str]]:
    """Draws what there is something to see of.

    Args:
      rows: `matrices` of a pruning report.

    Returns:
      {file name: (PNG bytes, caption)}: `prune_error.png` where errors were measured,
      `prune_sparsity.png` where matrices differ in their sparsity.
    """
    plots = {}
    # The user's own matplotlib settings would change the bytes.
    with matplotlib.style.context(["default", STYLE]):
        measured = [row for row in rows if row["relative_error"]]
        if measured:
            plots["prune_error.png"] = (png(_draw_error(measured)), _ERROR_CAPTION)
        # Counts are rounded to whole weights, so that equal fractions differ a little.
        shares = [row["sparsity"] for row in rows]
        if shares and max(shares) - min(shares) > 0.01:
            drawn = draw_sparsity({"layers": {"zeros": rows}}, {})
            if drawn is not None:
                plots["prune_sparsity.png"] = (png(drawn[0]), drawn[1])
    return plots


_ERROR_CAPTION = (
    "Relative error of every pruned matrix on the calibration text, by layer, on a "
    "logarithmic scale."
)


def _draw_error(rows: Rows) -> Figure:
    parts: dict[str, list[str]] = {}
    for path in dict.fromkeys(row["path"] for row in rows):
        parts.setdefault(short(path).split("/")[0], []).append(path)
    figure, axes = panels(len(parts), width=3.6, sharey=True)
    depth = 1 + max(row["layer"] for row in rows)
    styles: Any = zip(COLOURS + COLOURS, MARKERS + MARKERS, strict=True)
    for axis, line, paths in zip(axes, ("-", "--"), parts.values(), strict=False):
        for path in paths:
            errors = {
                r["layer"]: r["relative_error"] for r in rows if r["path"] == path
            }
            colour, marker = next(styles)
            axis.plot(
                *zip(*sorted(errors.items()), strict=True),
                line,  # seven matrices share six colours
                color=colour,
                marker=marker if depth <= 40 else None,
                markersize=4,
                label=short(path),
            )
        axis.set(title=short(paths[0]).split("/")[0], xlabel="layer", yscale="log")
        axis.set_xticks(range(0, depth, max(1, depth // 8)))
    axes[0].set_ylabel("relative error")
    legend(figure, axes)
    return figure


def short(path: str) -> str:
    """A matrix's name.

    Example:
      >>> short("layers/attention/q/kernel")
      'attention/q'
    """
    return path.removeprefix("layers/").removesuffix("/kernel")
