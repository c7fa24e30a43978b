"""How every plot of a report looks: colours, panels, legends, bytes.

Colours are Okabe and Ito's, distinct to colour-blind readers; the control is always
black. Legends stand outside the axes, where they cover no data.
"""

import io
import re
from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from sparse_jax.report.curves import Histories
from sparse_jax.report.text import Report

COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00")
CONTROL = "#000000"
LINES = ("-", "-.", ":")  # of the first, second and third round of colours
MARKERS = ("o", "s", "^", "D", "v", "P")
ACRONYMS = {word.lower(): word for word in ("AST", "CAST", "DPF", "KD", "SLoRB")}
STYLE = {
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": "medium",
    "figure.constrained_layout.use": True,
    "figure.dpi": 140,
    "font.size": 9,
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "lines.linewidth": 1.4,
    "lines.markersize": 6,
    "savefig.dpi": 140,
}


def panels(
    number: int, *, width: int | float = 3.3, height: int | float = 3.4, **options: Any
) -> tuple[Figure, list[Axes]]:
    """A row of axes on one figure, `width` inches each."""
    figure, axes = grid(1, number, width=width, height=height, **options)
    return figure, axes[0]


def grid(
    rows: int,
    columns: int,
    *,
    width: int | float = 3.3,
    height: int | float = 3.4,
    **options: Any,
) -> tuple[Figure, list[list[Axes]]]:
    """Rows of axes on one figure, `width` by `height` inches each."""
    figure = Figure(figsize=(width * columns + 0.6, height * rows))
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False, **options)
    return figure, [list(row) for row in axes]


def legend(figure: Figure, axes: Sequence[Axes]) -> None:
    """One legend below all panels, each label once."""
    entries: dict[str, Any] = {}
    for axis in axes:
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, handle)
    if entries:
        widest = 0.6 + 0.07 * max(map(len, entries))  # inches, at this font size
        columns = max(1, min(len(entries), int(figure.get_figwidth() / widest)))
        figure.legend(
            list(entries.values()),
            list(entries),
            loc="outside lower center",
            ncols=columns,
        )


def token_unit(models: Sequence[Report], histories: Histories) -> tuple[str, float]:
    """The unit of the token axis, as a word and as a number of tokens."""
    most = max(
        [row.get("tokens") or 0 for row in models]
        + [row.get("tokens") or 0 for rows in histories.values() for row in rows],
        default=0,
    )
    for scale, unit in ((1e9, "billions"), (1e6, "millions"), (1e3, "thousands")):
        if most >= scale:
            return unit, scale
    return "tokens", 1.0


def percent_ticks(axis: Axes) -> None:
    """Plain numbers on a symmetric-log axis in percent, linear within 1 %."""
    steps = [0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500]
    low, high = axis.get_ylim()
    ticks = [-step for step in reversed(steps)] + [0, *steps]
    ticks = [tick for tick in ticks if low <= tick <= high]
    axis.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    axis.minorticks_off()


def stage_style(stage: str, index: int) -> tuple[str, str]:
    """Colour and line style of a stage, the same in every plot."""
    if stage.startswith("dense_control"):
        return CONTROL, "--"
    if stage.startswith("small"):
        return COLOURS[5], "-"
    return COLOURS[index % 5], LINES[index // 5 % len(LINES)]


def words(name: str) -> str:
    """A name as it is said.

    Example:
      >>> words("one_shot_50"), words("small_dense"), words("ast_slorb_2of4")
      ('one-shot 50 %', 'small dense', 'AST SLoRB 2of4')
    """
    text = name.replace("one_shot", "one-shot").replace("sr_ste", "SR-STE")
    text = re.sub(r"_(\d+)$", r" \1 %", text)
    spoken = text.replace("_", " ").split(" ")
    return " ".join(ACRONYMS.get(word, word) for word in spoken)


def png(figure: Figure) -> bytes:
    """The figure as PNG, without a date or a version."""
    buffer = io.BytesIO()
    # The only metadata matplotlib adds by itself is its own version.
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()
