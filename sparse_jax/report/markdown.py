"""report.md: the result, the tables, the plots, and what the numbers mean."""

from collections.abc import Mapping, Sequence
from typing import Any

from sparse_jax.report import comparison_tables, equal_bits, packed
from sparse_jax.report.dataflow_tables import headline as headline_on_machine
from sparse_jax.report.dataflow_tables import speedup_table
from sparse_jax.report.headline import headline
from sparse_jax.report.recovery import (
    DEFINITIONS,
    examples_table,
    recovery_table,
    scores_table,
)
from sparse_jax.report.text import (
    MISSING,
    Number,
    Report,
    count,
    domains,
    duration,
    loss_of,
    number,
    percent,
)


def markdown(report: Report, plots: Mapping[str, str]) -> str:
    """The whole of report.md; sections without content are left out.

    Args:
      report: see `write_report`.
      plots: caption of each plot by its file name, relative to the report.
    """
    sections = [
        f"# {report.get('name', 'run')}\n\n{headline(report)}",
        _recovery(report),
        _comparison(report.get("comparison")),
        _quality(report.get("models", [])),
        _cost(report.get("models", [])),
        _one_shot(report),
        _packed(report.get("packed", [])),
        _equal_bits(report.get("equal_bits") or {}),
        _dataflow(report.get("dataflow", [])),
        images(plots),
        _what_was_run(report),
        _definitions(report),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def table(
    header: Sequence[str], rows: Sequence[Sequence[str]], *, words: bool = False
) -> str:
    """A Markdown table: the first column to the left, the others to the right.

    Args:
      header: titles of the columns.
      rows: their cells.
      words: all columns to the left, for cells that are sentences.

    Example:
      >>> print(table(["model", "loss"], [["dense", "2.1"]]))
      | model | loss |
      | :-- | --: |
      | dense | 2.1 |
    """
    rule = [":--", *[":--" if words else "--:"] * (len(header) - 1)]
    return "\n".join(f"| {' | '.join(line)} |" for line in (header, rule, *rows))


def _recovery(report: Report) -> str:
    """What fine-tuned models recover of the dense one, and what all score on tasks."""
    parts = []
    if report.get("recovery"):
        rows = recovery_table(report["recovery"])
        parts += ["## Recovery of the dense control", table(*rows), DEFINITIONS]
    if examples := examples_table(report.get("models", [])):
        parts += ["## Examples", table(*examples)]
    if report.get("scores"):
        parts += ["## Scores on tasks", table(*scores_table(report["scores"]))]
    return "\n\n".join(parts)


def _comparison(comparison: Report | None) -> str:
    """The methods of every pattern, by their gap, and what their parts bring."""
    if not comparison:
        return ""
    parts = ["## Methods compared"]
    for title, rows in comparison_tables.tables(comparison).items():
        parts += [f"### {title}", table(*rows)]
    return "\n\n".join([*parts, comparison_tables.DEFINITIONS])


def _quality(models: Sequence[Report]) -> str:
    if not models:
        return "## Models\n\nNo model was evaluated."
    header = ["model", "zeros in pruned matrices", "zeros in all", "tokens"]
    for domain in domains(models):
        header += [f"{domain} loss", "perplexity", "bits/byte", "gap"]
    rows = []
    for row in models:
        cells = [
            row["name"],
            percent(row.get("sparsity_pruned")),
            percent(row.get("sparsity_total")),
            count(row.get("tokens")),
        ]
        for domain in domains(models):
            numbers = row.get("domains", {}).get(domain, {})
            cells += [
                number(numbers.get("loss")),
                number(numbers.get("perplexity"), ".2f"),
                number(numbers.get("bits_per_byte")),
                percent(row.get("gap", {}).get(domain), "+.2f"),
            ]
        rows.append(cells)
    return f"## Models\n\n{table(header, rows)}"


def _cost(models: Sequence[Report]) -> str:
    names = ("seconds", "tokens_per_second", "training_flops_dense_equivalent")
    if not any(row.get(name) is not None for row in models for name in names):
        return ""
    header = ["model", "tokens", "time of its stage", "tokens/s"]
    header += ["training flops, dense", "training flops, non-zero"]
    rows = [
        [
            row["name"],
            count(row.get("tokens")),
            duration(row.get("seconds")),
            number(row.get("tokens_per_second"), ",.0f"),
            _flops(row.get("training_flops_dense_equivalent")),
            _flops(row.get("training_flops_nonzero")),
        ]
        for row in models
    ]
    return f"## What it cost\n\n{table(header, rows)}"


def _one_shot(report: Report) -> str:
    rows = report.get("one_shot", [])
    if not rows:
        return ""
    sparsities = sorted({row["sparsity"] for row in rows})
    methods = list(dict.fromkeys(row["method"] for row in rows))
    parts = [
        "## One-shot pruning, no training after it",
        "Held-out loss of the dense model pruned in one step; the lowest of each "
        "column is bold.",
    ]
    for domain in domains(rows):
        losses = {
            (row["method"], row["sparsity"]): loss_of(row, domain) for row in rows
        }
        best = {}
        for sparsity in sparsities:
            found = [losses.get((method, sparsity)) for method in methods]
            best[sparsity] = min((x for x in found if x is not None), default=None)
        lines = [
            [
                method,
                *(_cell(losses.get((method, s)), best[s]) for s in sparsities),
            ]
            for method in methods
        ]
        dense = next(
            (row for row in report.get("models", []) if row["name"] == "dense"), {}
        )
        if loss_of(dense, domain) is not None:
            lines.append(["dense", *[number(loss_of(dense, domain))] * len(sparsities)])
        parts.append(table([domain, *(percent(s) for s in sparsities)], lines))
    return "\n\n".join(parts)


def _cell(loss: Number | None, best: Number | None) -> str:
    text = number(loss)
    return f"**{text}**" if loss is not None and loss == best else text


def _packed(rows: Sequence[Report]) -> str:
    if not rows:
        return ""
    parts = ["## Packed", table(*packed.packed_table(rows)), packed.DEFINITIONS]
    return "\n\n".join(parts)


def _equal_bits(found: Report) -> str:
    if not found:
        return ""
    rows = table(*equal_bits.equal_bits_table(found["points"]))
    return "\n\n".join(["## Loss against bits", rows, equal_bits.DEFINITIONS])


def _dataflow(simulations: Sequence[Report]) -> str:
    """What the sparsity would gain on a machine that skips zeros."""
    if not simulations:
        return ""
    parts = ["## On a machine that streams weights and skips zeros"]
    for numbers in simulations:
        parts += [headline_on_machine(numbers), table(*speedup_table(numbers))]
    parts.append(
        "Simulated, see docs/dataflow.md; the ranges are those of the machine's "
        "uncertain constants, all at once. launch/simulate.py says where the time goes."
    )
    return "\n\n".join(parts)


def images(plots: Mapping[str, str]) -> str:
    """The section with the plots: captions by file name."""
    if not plots:
        return ""
    parts = ["## Plots"]
    for name, caption in plots.items():
        parts += [f"![{caption}]({name})", caption]
    return "\n\n".join(parts)


def _what_was_run(report: Report) -> str:
    parts = ["## What was run"]
    if report.get("command"):
        parts.append(f"```\n{report['command']}\n```")
    top = {
        "Python": report.get("python"),
        "config sha256": report.get("config_sha256"),
        **report.get("versions", {}),
    }
    titles = ("model", "corpus", "data", "calibration", "evaluation")
    found = facts({key: value for key, value in top.items() if value is not None})
    parts += [found] if found else []
    for title in titles:
        if report.get(title):
            parts.append(f"**{title.capitalize()}**\n\n{facts(report[title])}")
    return "\n\n".join(parts) if len(parts) > 1 else ""


def facts(values: Mapping[str, Any]) -> str:
    """A Markdown list of facts; the leaves of a nested fact share its line.

    Example:
      >>> print(facts({"window": 256, "sources": {"code": 0.7, "prose": 0.3}}))
      - window: 256
      - sources: code 0.7; prose 0.3
    """
    return "\n".join(
        f"- {_words(key)}: {_fact(value)}" for key, value in values.items()
    )


def _fact(value: Any) -> str:
    if isinstance(value, Mapping):
        inner = (f"{_words(k)} {_fact(v)}" for k, v in value.items())
        return "; ".join(inner) if value else MISSING
    if isinstance(value, list | tuple):
        return ", ".join(_fact(item) for item in value) or MISSING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:g}"
    text = MISSING if value is None else " ".join(str(value).split())
    return f"`{text}`" if len(text) >= 32 and " " not in text else text


def _words(key: Any) -> str:
    return str(key).replace("_", " ")


def _flops(value: Number | None) -> str:
    return number(value, ".3e").replace("e+", "e")


def _definitions(report: Report) -> str:
    window = report.get("evaluation", {}).get("window")
    cut = f"windows of {window} tokens" if window else "windows of N tokens"
    lines = [
        f"Loss is nats per token on held-out text never trained on: one stream per "
        f"domain, encoded without special tokens, non-overlapping {cut}, the first "
        "token of each only read, a ragged tail dropped. Perplexity is its "
        "exponential; bits per byte divide by the UTF-8 bytes of the predicted "
        "tokens. Perplexities over other windows or tokenizers do not compare.",
        "Tokens are cumulative: those of the models it came from are included.",
        "Gap is loss / control loss - 1 at the same cumulative tokens. The control "
        "repeats the sparse stages with identical batches, optimizer resets and "
        "learning rates, and no weight pruned. A dash: no control at these tokens.",
        "Zeros in pruned matrices count the matrices that a pattern applies to; zeros "
        "in all count every parameter, embeddings and norms included, and are what a "
        "file can save at most.",
        "Training flops are cumulative, per token 6 x (weights of matmuls, head "
        "included) + 6 L d T. Dense: what this hardware executed, zeros included; "
        "non-zero: what hardware that skips zeros would execute.",
        "Time is this stage alone; tokens/s is the rate of its training.",
    ]
    text = "\n".join(f"- {line}" for line in lines)
    return f"## How the numbers are defined\n\n{text}"
