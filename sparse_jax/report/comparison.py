"""Methods beside each other: means over seeds, and what each part of a method brings.

Rows of one method, pattern and number of tokens that differ in their seed alone are a
group. Means and sample standard deviations are over the seeds of a group.
"""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sparse_jax.report.gap import is_control
from sparse_jax.report.names import domain_of, parse
from sparse_jax.report.text import Number, Report, domains, loss_of

Comparison = Mapping[str, Any]


def compare(
    models: Sequence[Report], questions: Sequence[Mapping[str, str]] = ()
) -> dict[str, Any] | None:
    """Groups the rows of a report by method, and answers questions about them.

    Args:
      models: rows of a report with their gaps, named <method>[_<pattern>][_seed<N>].
      questions: `question`, in words, and the names of the methods that answer it,
        `with` and `without`; asked of every pattern that has both.

    Returns:
      groups, the controls first and the others by their mean gap: name, method,
        pattern, control, sparsity, seeds, runs, tokens, bits_per_weight, gap and
        gap_sd (of each run's mean over the domains), domains {domain: loss, gap,
        gap_sd};
      answers: question, with, without, pattern, tokens of both, domains {domain: runs,
        difference of the losses, standard_error, answer}.
      None where nothing is asked, no group has two seeds, and no three methods the same
      tokens.
    """
    rows = [row for row in models if not row["name"].startswith("small")]
    groups: dict[tuple[str, Number | None], list[Report]] = {}
    for row in rows:
        key = (parse(row["name"]).group, row.get("tokens"))
        groups.setdefault(key, []).append(row)
    sparse = [tokens for name, tokens in groups if not is_control(name)]
    if not questions and not (
        any(len(members) > 1 for members in groups.values())
        or any(sparse.count(tokens) > 2 for tokens in sparse if tokens is not None)
    ):
        return None
    found = [_group(members, domains(rows)) for members in groups.values()]
    found.sort(key=_rank)
    return {
        "groups": found,
        "answers": [
            answer
            for question in questions
            for answer in _answers(question, list(groups.values()), domains(rows))
        ],
    }


def _group(members: Sequence[Report], names: Sequence[str]) -> dict[str, Any]:
    name = parse(members[0]["name"])
    gaps = [_known(row.get("gap", {}).values()) for row in members]
    overall = [statistics.fmean(values) for values in gaps if values]
    numbers = {}
    for domain in names:
        losses = _known(loss_of(row, domain) for row in members)
        of_domain = _known(row.get("gap", {}).get(domain) for row in members)
        numbers[domain] = {
            "loss": _mean(losses),
            "gap": _mean(of_domain),
            "gap_sd": _sd(of_domain),
        }
    return {
        "name": name.group,
        "method": name.method,
        "pattern": name.pattern,
        "control": is_control(name.group),
        "sparsity": members[0].get("sparsity_pruned"),
        "seeds": sorted(_known(parse(row["name"]).seed for row in members)),
        "runs": len(members),
        "tokens": members[0].get("tokens"),
        "bits_per_weight": _mean(_known(row.get("bits_per_weight") for row in members)),
        "gap": _mean(overall),
        "gap_sd": _sd(overall),
        "domains": numbers,
    }


def _rank(group: Comparison) -> tuple[bool, Number, str]:
    if group["control"]:
        return False, group["tokens"] or 0, group["name"]
    gap = group["gap"]
    return True, float("inf") if gap is None else gap, group["name"]


def _answers(
    question: Mapping[str, str],
    groups: Sequence[Sequence[Report]],
    names: Sequence[str],
) -> list[dict[str, Any]]:
    """One answer for every pattern that has both methods, or that none has them."""
    members: dict[str, dict[str | None, Sequence[Report]]] = {}
    # A method that has rows at several numbers of tokens is judged by its last ones.
    for rows in sorted(groups, key=lambda rows: rows[0].get("tokens") or 0):
        name = parse(rows[0]["name"])
        members.setdefault(name.method, {})[name.pattern] = rows
    first, second = (members.get(question[side], {}) for side in ("with", "without"))
    answers = []
    for pattern in [pattern for pattern in first if pattern in second] or [None]:
        pair = first.get(pattern, []), second.get(pattern, [])
        tokens = [rows[0].get("tokens") for rows in pair if rows]
        found = {domain: _difference(*pair, domain) for domain in names}
        answers.append(
            {key: question[key] for key in ("question", "with", "without")}
            | {"pattern": pattern, "tokens": tokens, "domains": found}
        )
    return answers


def _difference(
    left: Sequence[Report], right: Sequence[Report], domain: str
) -> dict[str, Any]:
    """Mean of loss(left) - loss(right) over common seeds, and its standard error.

    helps, hurts: |mean| >= 2 sd / sqrt(runs); otherwise, and of one run, unresolved
    """
    ours, theirs = (
        {parse(row["name"]).seed: loss_of(row, domain) for row in rows}
        for rows in (left, right)
    )
    pairs = [(ours[seed], theirs[seed]) for seed in ours if seed in theirs]
    if not pairs:  # other seeds on both sides: two means, and no word on their error
        pairs = [(_mean(_known(side.values())) for side in (ours, theirs))]
    differences = [a - b for a, b in pairs if a is not None and b is not None]
    mean, spread = _mean(differences), _sd(differences)
    error = None if spread is None else spread / len(differences) ** 0.5
    if mean is None:
        answer = "not run"
    elif error is None or mean == 0 or abs(mean) < 2 * error:
        answer = "not resolved"
    else:
        answer = "helps" if mean < 0 else "hurts"
    return {
        "runs": len(differences),
        "difference": mean,
        "standard_error": error,
        "answer": answer,
    }


def patterns(comparison: Comparison) -> list[str | None]:
    """Every pattern that some method other than a control has.

    Where methods are compared by what they were fine-tuned on, the models that they
    began with are left out.
    """
    groups = [group for group in comparison["groups"] if not group["control"]]
    found = dict.fromkeys(group["pattern"] for group in groups)
    if any(domain_of(pattern) for pattern in found):
        found.pop(None, None)
    return sorted(found, key=lambda pattern: (pattern is None, pattern or ""))


def in_pattern(comparison: Comparison, pattern: str | None) -> list[Comparison]:
    """The groups of a pattern, the dense parent, and the controls at their tokens."""
    methods = [
        group
        for group in comparison["groups"]
        if group["pattern"] == pattern and not group["control"]
    ]
    tokens = {group["tokens"] for group in methods}
    controls = [
        group
        for group in comparison["groups"]
        if group["control"]
        and group["pattern"] in (None, pattern)
        and (group["tokens"] in tokens or group["name"] == "dense")
    ]
    return [*controls, *methods]


def _known(values: Iterable[Any]) -> list[Any]:
    return [value for value in values if value is not None]


def _mean(values: Sequence[Number]) -> float | None:
    return statistics.fmean(values) if values else None


def _sd(values: Sequence[Number]) -> float | None:
    return statistics.stdev(values) if len(values) > 1 else None
