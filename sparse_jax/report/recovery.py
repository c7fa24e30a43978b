"""What fine-tuned models recover of the dense one that was fine-tuned alike.

    recovery in a score = score / the control's score
    recovery in loss    = the control's loss / loss = 1 / (1 + gap)

Every run is held against the dense control of its own seed and domain; means and sample
standard deviations are over seeds.
"""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from sparse_jax.report.gap import is_control
from sparse_jax.report.names import Name, parse
from sparse_jax.report.text import MISSING, Report, percent

Recovery = Mapping[str, Any]
Scores = Mapping[tuple[Name, str], float]  # of a model on a task

# Of what a task measures, the number that is reported of it.
_SCORES = ("acc_norm", "acc", "strict_match", "pass@1", "rougeL")


def recovery(
    models: Sequence[Report], scores: Sequence[Report] = ()
) -> list[dict[str, Any]]:
    """The recovery of every method, the best mean first.

    Args:
      models: rows of a report with their gaps; those without one, or that have seen
        fewer tokens than the control, are left out.
      scores: rows of `model`, `task` and `metrics` {name: {value, stderr}}.

    Returns:
      Rows of method, seeds, loss {domain: {mean, sd, runs}}, score {task: {mean, sd,
        runs, value}} and `mean`, {mean, sd, runs} over tasks, in loss where the
        dense score is 0 or unknown.
    """
    losses: dict[str, dict[str, dict[int | None, float]]] = {}
    # A control that was given fine-tuned already has no tokens that compare.
    tuned = {row.get("tokens") for row in models if _is_tuned_control(row)} - {0}
    for row in models:
        name = parse(row["name"])
        if row.get("tokens") not in tuned:
            continue
        for domain, gap in row.get("gap", {}).items():
            if gap is not None:
                by_seed = losses.setdefault(name.method, {}).setdefault(domain, {})
                by_seed[name.seed] = 1 / (1 + gap)
    values = _values(scores)
    found = [
        _row(method, losses.get(method, {}), _relative(method, values))
        for method in dict.fromkeys([*losses, *(n.method for n, _ in values)])
        if not is_control(method)
    ]
    found = [row for row in found if row["mean"]["runs"]]
    return sorted(found, key=lambda row: -row["mean"]["mean"])


def recovery_table(rows: Sequence[Recovery]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the table."""
    domains = list(dict.fromkeys(d for row in rows for d in row["loss"]))
    tasks = list(dict.fromkeys(t for row in rows for t in row["score"]))
    header = ["method", "runs", "mean", "sd"]
    header += [part for d in domains for part in (f"{d}, in loss", "sd")]
    header += [part for t in tasks for part in (f"{t}, in score", "sd")]
    lines = []
    for row in rows:
        columns = [row["mean"], *(row["loss"].get(d, {}) for d in domains)]
        columns += [row["score"].get(t, {}) for t in tasks]
        cells = [row["method"], str(row["mean"]["runs"])]
        for one in columns:
            cells += [percent(one.get("mean"), ".2f"), percent(one.get("sd"), ".2f")]
        lines.append(cells)
    return header, lines


def scores_table(scores: Sequence[Report]) -> tuple[list[str], list[list[str]]]:
    """Every score of every model that was asked tasks, with its standard error."""
    tasks = list(dict.fromkeys(row["task"] for row in scores))
    lines: dict[str, dict[str, str]] = {}
    for row in scores:
        name, estimate = main_score(row["metrics"])
        value, error = estimate.get("value"), estimate.get("stderr")
        text = percent(value, ".2f") + (f" ± {percent(error, '.2f')}" if error else "")
        lines.setdefault(row["model"], {})[row["task"]] = f"{text} ({name})"
    rows = [
        [model, *(cells.get(task, MISSING) for task in tasks)]
        for model, cells in lines.items()
    ]
    return ["model", *tasks], rows


def examples_table(
    models: Sequence[Report],
) -> tuple[list[str], list[list[str]]] | None:
    """What became of the examples of each task; None without any."""
    found: dict[str, Mapping[str, int]] = {}
    for row in models:
        found |= row.get("examples", {})
    for row in models:
        for domain, numbers in row.get("domains", {}).items():
            if "examples" in numbers:
                found[f"{domain}, held out"] = numbers["examples"]
    if not found:
        return None
    columns = ("examples", "truncated", "dropped", "rows", "tokens", "response_tokens")
    header = ["task", *(name.replace("_", " ") for name in columns)]
    return header, [
        [d, *(f"{c[name]:,}" for name in columns)] for d, c in found.items()
    ]


def main_score(metrics: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
    """Name and estimate of the metric that stands for a task."""
    name = next((n for n in _SCORES if n in metrics), next(iter(metrics)))
    return name, metrics[name]


def _values(scores: Sequence[Report]) -> dict[tuple[Name, str], float]:
    found = {}
    for row in scores:
        value = main_score(row["metrics"])[1].get("value")
        if value is not None:
            found[parse(row["model"]), row["task"]] = value
    return found


def _relative(
    method: str, values: Scores
) -> dict[str, dict[Name, tuple[float, float]]]:
    """Task -> model -> (score over that of its control, score)."""
    found: dict[str, dict[Name, tuple[float, float]]] = {}
    for (name, task), value in values.items():
        control = name._replace(method="dense_control")
        dense = values.get((control, task))
        if dense is None:  # one control of all patterns
            dense = values.get((control._replace(pattern=None), task))
        if name.method == method and dense:
            found.setdefault(task, {})[name] = (value / dense, value)
    return found


def _is_tuned_control(row: Report) -> bool:
    """Whether a row is the fine-tuned dense model, not the base that it began as."""
    return is_control(row["name"]) and row["name"] != "dense"


def _row(method, losses, scores) -> dict[str, Any]:
    seeds: dict[int | None, list[float]] = {}
    # Of a domain that is a task, too, the score counts, where the control has one.
    for by_seed in (found for domain, found in losses.items() if domain not in scores):
        for seed, value in by_seed.items():
            seeds.setdefault(seed, []).append(value)
    for by_name in scores.values():
        for name, (value, _) in by_name.items():
            seeds.setdefault(name.seed, []).append(value)
    return {
        "method": method,
        "seeds": sorted(seed for seed in seeds if seed is not None),
        "loss": {d: _stated(list(by_seed.values())) for d, by_seed in losses.items()},
        "score": {
            task: _stated([relative for relative, _ in by_name.values()])
            | {"value": statistics.fmean(value for _, value in by_name.values())}
            for task, by_name in scores.items()
        },
        "mean": _stated([statistics.fmean(values) for values in seeds.values()]),
    }


def _stated(values: Sequence[float]) -> dict[str, Any]:
    return {
        "mean": statistics.fmean(values) if values else None,
        "sd": statistics.stdev(values) if len(values) > 1 else None,
        "runs": len(values),
    }


DEFINITIONS = """\
- Recovery in loss is the dense control's loss over the model's, on held-out responses;
  in score, the model's score over the control's. Each run is held against the control
  of its seed, fine-tuned on as many tokens of the same data; the mean is over tasks, in
  score where the control has one above 0, else in loss, and the standard deviation (sd)
  over seeds."""
