"""What sparsity would gain on a weight-streaming machine: files and a summary.

The numbers are those of `sparse_jax.dataflow.sweep`, as plain data.
"""

import json
from collections.abc import Mapping

from sparse_jax.report import dataflow_tables as tables
from sparse_jax.report.dataflow_plots import draw_dataflow_plots
from sparse_jax.report.dataflow_tables import Numbers
from sparse_jax.report.markdown import images, table
from sparse_jax.report.text import plain_table
from sparse_jax.report.writer import plain

MARKDOWN, JSON = "simulation.md", "simulation.json"


def dataflow_summary(numbers: Numbers) -> str:
    """Everything that a launcher prints."""
    work, found = numbers["work"], tables.tables(numbers)
    parts = [f"{title}\n{plain_table(*rows)}" for title, rows in found.items()]
    first = [tables.headline(numbers), tables.batch(work), parts[0]]
    first.append(tables.legend(work))
    return "\n\n".join([*first, *parts[1:], *_notes(numbers)])


def _notes(numbers: Numbers) -> list[str]:
    notes = [tables.SENSITIVITY] if numbers["sensitivity"] else []
    return [*notes, tables.crossover(numbers)]


def dataflow_markdown(numbers: Numbers, plots: Mapping[str, str]) -> str:
    """The whole of simulation.md.

    Args:
      numbers: of the simulation.
      plots: caption of each plot by its file name.
    """
    work, found = numbers["work"], tables.tables(numbers)
    constants = tables.constants_table(numbers["machine"])
    parts = [f"## {title}\n\n{table(*rows)}" for title, rows in found.items()]
    sections = [
        f"# {numbers['model']} on {numbers['machine']['name']}",
        tables.headline(numbers),
        tables.batch(work),
        parts[0],
        tables.legend(work),
        *parts[1:],
        *_notes(numbers),
        images(plots),
        f"## The machine\n\n{table(*constants, words=True)}",
        _DEFINITIONS,
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def dataflow_files(numbers: Numbers) -> dict[str, bytes]:
    """The files of a simulation by name; equal numbers give equal bytes."""
    plots = draw_dataflow_plots(numbers)
    captions = {name: caption for name, (_, caption) in plots.items()}
    text = json.dumps(plain(numbers), indent=2, allow_nan=False) + "\n"
    return {
        JSON: text.encode(),
        MARKDOWN: dataflow_markdown(numbers, captions).encode(),
        **{name: png for name, (png, _) in plots.items()},
    }


_DEFINITIONS = """\
## How the numbers are defined

- A speed-up is over the same machine, model, batch and context with no weight missing,
  each in the layout (groups of columns) that suits it best.
- Ideals count multiply-adds alone: 1/(1-s) for the matrices, less where weight
  gradients (dW) are computed at all positions and not just the kept ones; Amdahl's law
  for the step, whose attention and head stay dense. "Of ideal" is over the ideal of the
  weight gradients that were simulated.
- Ranges set all uncertain constants at once to those ends of their own ranges at which
  the speed-up of the step is least, and most, as far as a search finds them. Where the
  matrices run further from the peak than attention does, they weigh more than their
  arithmetic, and the speed-up of the step may exceed its ideal.
- Compute is the mean over columns of elements, load imbalance what the slowest adds,
  waiting for reductions included; the weight stream counts as far as computation does
  not hide it."""
