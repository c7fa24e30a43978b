"""What one-shot pruning did: prune_report.md with plots, prune_report.json, a summary.

The JSON file holds the numbers that the others show:

    fingerprint   of everything asked for: model, texts and settings
    model         path, source (in words), dtype (as stored now), parameters
    settings      the fields of the job: solver, pattern, sparsity, damping, seed ...
    calibration   path, field, bytes and tokens read, sequences, length, seed, and the
                  sha256 of the drawn ids; null without calibration
    evaluation    per text: data, split, tokenizer, window, stride, tokens, bytes, and
                  `before` and `after`, each loss, perplexity, bits_per_byte
    matrices      per matrix: layer, path, pattern, weights, sparsity, relative_error,
                  damping, damping_raised, seconds (its share of a shared solve); where
                  matrices are rounded also bits (per weight, all told), extra_bits
                  (factors and outliers), index_bits, left_out (why it is in floats, or
                  null), and block_error before and after the block's training
    by_matrix     per path: matrices, weights, and means over the layers
    total         over all matrices; sparsity_of_all is over `model.parameters`
    versions      of Python, JAX and this package

Sparsities are fractions of zeros. The relative error of a matrix W pruned to W' is
tr((W' - W) H (W' - W)^T) / tr(W H W^T) on the calibration text, null where there was
none; means of it count every matrix once.
"""

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from sparse_jax.report.markdown import facts, images, table
from sparse_jax.report.pruning_plots import draw_pruning_plots, short
from sparse_jax.report.rounding import (
    ROUNDING_DEFINITIONS,
    bits_cell,
    bits_header,
    is_rounded,
    left_out_section,
    mean_bits,
    rounding_sentence,
)
from sparse_jax.report.text import Report, duration, number, percent, plain_table
from sparse_jax.report.writer import plain

Row = Mapping[str, Any]

PRUNE_REPORT, MARKDOWN = "prune_report.json", "prune_report.md"


def pruning_report(report: Mapping[str, Any]) -> dict[str, Any]:
    """Adds what follows from the matrices, and makes all of it plain JSON data.

    Args:
      report: this module's first five entries and `versions`; rows of `matrices`
        without `damping_raised`.
    """
    asked = report["settings"].get("damping")
    rows = [row | {"damping_raised": _raised(row, asked)} for row in report["matrices"]]
    paths = list(dict.fromkeys(row["path"] for row in rows))
    total = _means(rows)
    zeros = total["sparsity"] * total["weights"]
    total["sparsity_of_all"] = zeros / report["model"]["parameters"]
    total["damping_raised"] = sum(row["damping_raised"] for row in rows)
    added = {
        "matrices": rows,
        "by_matrix": [
            {"path": path, **_means([row for row in rows if row["path"] == path])}
            for path in paths
        ],
        "total": total,
    }
    return plain({**report, **added})


def pruning_files(report: Report) -> dict[str, bytes]:
    """The files of a report by name; equal numbers give equal bytes.

    Args:
      report: of `pruning_report`.
    """
    plots = draw_pruning_plots(report["matrices"])
    captions = {name: caption for name, (_, caption) in plots.items()}
    text = json.dumps(report, indent=2, allow_nan=False) + "\n"
    return {
        PRUNE_REPORT: text.encode(),
        MARKDOWN: pruning_markdown(report, captions).encode(),
        **{name: png for name, (png, _) in plots.items()},
    }


def pruning_headline(report: Report) -> str:
    """The result in words."""
    settings, total = report["settings"], report["total"]
    text = (
        f"{percent(total['sparsity'])} of the weights of {total['matrices']} matrices "
        f"are zero ({percent(total['sparsity_of_all'])} of all parameters), "
    )
    if settings["pattern"] == "found":
        text += "as they were found"
    else:
        text += f"{settings['pattern']}, by {settings['solver']}"
    if total["relative_error"] is not None:
        text += f"; their mean relative error is {_error(total['relative_error'])}"
    sentences = [text + "."]
    if is_rounded(report):
        sentences.append(rounding_sentence(report))
    for row in report["evaluation"]:
        before, after = row["before"]["perplexity"], row["after"]["perplexity"]
        change = f"{number(before, '.3f')} to {number(after, '.3f')}"
        sentences.append(f"Perplexity on {row['data']}: {change}.")
    return " ".join(sentences)


def pruning_summary(report: Report) -> str:
    """The tables and the sentence that a launcher prints at its end."""
    header = ["matrix", "zeros", *bits_header(report), "relative error", "solve"]
    lines = [[name, *_cells(row)] for name, row in _by_matrix(report)]
    parts = [plain_table(header, lines)]
    if report["evaluation"]:
        parts.append(plain_table(*_evaluation(report)))
    return "\n\n".join([*parts, pruning_headline(report)])


def pruning_markdown(report: Report, plots: Mapping[str, str]) -> str:
    """The whole of prune_report.md.

    Args:
      report: of `pruning_report`.
      plots: caption of each plot by its file name.
    """
    name = pathlib.PurePath(report["model"]["path"]).name
    sections = [
        f"# {name}, {_done(report)}\n\n{pruning_headline(report)}",
        f"## Evaluation\n\n{table(*_evaluation(report))}"
        if report["evaluation"]
        else "",
        _matrix_means(report),
        left_out_section(report),
        _raised_dampings(report),
        images(plots),
        _every_matrix(report),
        _what_was_run(report),
        _DEFINITIONS,
        ROUNDING_DEFINITIONS if is_rounded(report) else "",
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _done(report: Report) -> str:
    if not is_rounded(report):
        return "pruned"
    return (
        "rounded" if report["settings"]["pattern"] == "found" else "pruned and rounded"
    )


def _raised(row: Row, asked: float | None) -> bool:
    # The damping used went through float32.
    used = row["damping"]
    return used is not None and asked is not None and used > asked * 1.001


def _means(rows: Sequence[Row]) -> dict[str, Any]:
    weights = sum(row["weights"] for row in rows)
    errors = [row["relative_error"] for row in rows]
    return {
        "matrices": len(rows),
        "weights": weights,
        "sparsity": sum(row["sparsity"] * row["weights"] for row in rows)
        / max(weights, 1),
        "relative_error": sum(errors) / len(errors)
        if errors and None not in errors
        else None,
        "seconds": sum(row["seconds"] for row in rows),
        **mean_bits(rows),
    }


def _by_matrix(report: Report) -> list[tuple[str, Row]]:
    rows = [(short(row["path"]), row) for row in report["by_matrix"]]
    return [*rows, ("all", report["total"])]


def _evaluation(report: Report) -> tuple[list[str], list[list[str]]]:
    header = ["text", "tokens", "loss before", "after", "perplexity before", "after"]
    header += ["bits/byte before", "after"]
    lines = [
        [row["data"], f"{row['tokens']:,}"]
        + [
            number(row[side][name], form)
            for name, form in _EVALUATED
            for side in ("before", "after")
        ]
        for row in report["evaluation"]
    ]
    return header, lines


_EVALUATED = (("loss", ".4f"), ("perplexity", ".3f"), ("bits_per_byte", ".4f"))


def _matrix_means(report: Report) -> str:
    header = ["matrix", "layers", "weights", "zeros", *bits_header(report)]
    header += ["mean relative error", "solve"]
    lines = [
        [name, str(row["matrices"]), f"{row['weights']:,}", *_cells(row)]
        for name, row in _by_matrix(report)
    ]
    return f"## Matrices, over all layers\n\n{table(header, lines)}"


def _raised_dampings(report: Report) -> str:
    rows = [row for row in report["matrices"] if row["damping_raised"]]
    if not rows:
        return ""
    lines = [
        f"- layer {row['layer']}, {short(row['path'])}: {row['damping']:.3g}"
        for row in rows
    ]
    return (
        "## Raised damping\n\nThe Hessians of these inputs were not positive definite "
        f"with the damping of {report['settings']['damping']:g} that was asked for, so "
        "it was raised until they were:\n\n" + "\n".join(lines)
    )


def _every_matrix(report: Report) -> str:
    header = ["layer", "matrix", "pattern", "zeros", *bits_header(report)]
    header += ["relative error", "solve"]
    lines = [
        [str(row["layer"]), short(row["path"]), row["pattern"], *_cells(row, ".2f")]
        for row in report["matrices"]
    ]
    for line, row in zip(lines, report["matrices"], strict=True):
        raised = " raised" if row["damping_raised"] else ""
        line.append(number(row["damping"], ".3g") + raised)
    return f"## Every matrix\n\n{table([*header, 'damping'], lines)}"


def _what_was_run(report: Report) -> str:
    parts = ["## What was run"]
    for title in ("model", "settings", "calibration", "versions"):
        if report.get(title):
            parts.append(f"**{title.capitalize()}**\n\n{facts(report[title])}")
    if report["evaluation"]:
        shared = ("split", "window", "stride", "tokenizer")
        rows = [
            {"text": row["data"], **{k: row[k] for k in shared}}
            for row in report["evaluation"]
        ]
        parts += ["**Evaluation**", *(facts(row) for row in rows)]
    return "\n\n".join(parts)


def _cells(row: Row, form: str = ".1f") -> list[str]:
    errors = _error(row["relative_error"])
    zeros = percent(row["sparsity"], form)
    return [zeros, *bits_cell(row), errors, duration(row["seconds"])]


def _error(value: float | None) -> str:
    return number(value, "#.3g")


_DEFINITIONS = """\
## How the numbers are defined

- Zeros are fractions of the matrices that were pruned; "of all parameters" counts
  embeddings, head and norms too, and is what a file can save at most.
- Relative error is tr((W' - W) H (W' - W)^T) / tr(W H W^T), the share of a matrix's
  output energy that pruning lost, on the calibration text as the pruned blocks before
  it pass it on. Means count every matrix once.
- Damping is relative to the mean of H's diagonal; a dash where the solver uses none.
- Solve times leave out reading, calibration and evaluation; the first of each shape
  include its compilation. Matrices that read the same input are solved together and
  share their time evenly.
- Loss is nats per token over non-overlapping windows, the first token of each only
  read, a ragged tail dropped. Perplexity is its exponential; bits per byte divide by
  the UTF-8 bytes of the predicted tokens. Numbers over other windows or
  tokenizers do not compare."""
