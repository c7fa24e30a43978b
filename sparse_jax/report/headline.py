"""The result in words, and the summary that a run prints at its end."""

from collections.abc import Sequence

from sparse_jax.report.comparison_tables import best_methods, tables
from sparse_jax.report.gap import is_control
from sparse_jax.report.recovery import recovery_table, scores_table
from sparse_jax.report.text import (
    Report,
    count,
    domains,
    duration,
    loss_of,
    number,
    percent,
    plain_table,
)


def headline(report: Report) -> str:
    """The result in words.

    The last trained model against the dense control; where several methods or seeds
    are compared, the best method of each pattern.
    """
    if report.get("comparison"):
        best = best_methods(report["comparison"])
        if best:
            return best
    models = report.get("models", [])
    sparse = [
        row
        for row in models
        if row.get("sparsity_pruned")
        and not is_control(row["name"])
        and not row["name"].startswith("one_shot")
    ]
    if not sparse:
        return "No sparse model was trained."
    last = sparse[-1]
    what = f"{last['name']}: {percent(last['sparsity_pruned'])} of the pruned matrices"
    if last.get("sparsity_total") is not None:
        what += f" and {percent(last['sparsity_total'])} of all parameters"
    gaps = {k: v for k, v in last.get("gap", {}).items() if v is not None}
    if not gaps:
        return f"{what} are zero; no dense control was evaluated at its tokens."
    words = [
        f"{abs(100 * gap):.2f} % {'above' if gap >= 0 else 'below'} it on {domain}"
        for domain, gap in gaps.items()
    ]
    return (
        f"{what} are zero. Against the dense control at the same "
        f"{count(last.get('tokens'))} tokens, its held-out loss is "
        f"{' and '.join(words)}."
    )


def summary(report: Report) -> str:
    """The tables and the sentence that a run prints at its end.

    Args:
      report: see `write_report`; missing entries print as a dash.
    """
    if report.get("comparison"):
        found = tables(report["comparison"])
        parts = [f"{title}\n{plain_table(*rows)}" for title, rows in found.items()]
    else:
        parts = [_models_table(report.get("models", []))]
    if report.get("recovery"):
        rows = plain_table(*recovery_table(report["recovery"]))
        parts.append(f"Recovery of the dense control\n{rows}")
    if report.get("scores"):
        parts.append(f"Scores\n{plain_table(*scores_table(report['scores']))}")
    return "\n\n".join([report.get("name", "run"), *parts, headline(report)])


def _models_table(models: Sequence[Report]) -> str:
    if not models:
        return "No model was evaluated."
    header = ["model", "sparsity", "tokens"]
    for domain in domains(models):
        header += [f"{domain} loss", "gap"]
    header.append("time")
    rows = []
    for row in models:
        cells = [row["name"], percent(row.get("sparsity_pruned"))]
        cells.append(count(row.get("tokens")))
        for domain in domains(models):
            cells.append(number(loss_of(row, domain)))
            cells.append(percent(row.get("gap", {}).get(domain), "+.2f"))
        cells.append(duration(row.get("seconds")))
        rows.append(cells)
    return plain_table(header, rows)
