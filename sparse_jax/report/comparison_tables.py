"""A comparison of methods as tables and as a sentence."""

from collections.abc import Sequence
from itertools import groupby

from sparse_jax.report.comparison import Comparison, in_pattern, patterns
from sparse_jax.report.names import domain_of, title_of
from sparse_jax.report.text import MISSING, count, number, percent

Table = tuple[list[str], list[list[str]]]
"""Header and rows."""


def tables(comparison: Comparison) -> dict[str, Table]:
    """The tables by title: one for each pattern, and one of the answers."""
    found = {}
    for pattern in patterns(comparison):
        title = "Methods" if pattern is None else f"Methods, {title_of(pattern)}"
        found[title] = _methods_table(in_pattern(comparison, pattern))
    if comparison["answers"]:
        found["What each part brings"] = _answers_table(comparison["answers"])
    return found


def _methods_table(groups: Sequence[Comparison]) -> Table:
    names = [
        domain
        for domain in groups[0]["domains"]
        if any(g["domains"][domain]["loss"] for g in groups if not g["control"])
    ]
    with_bits = any(group["bits_per_weight"] is not None for group in groups)
    header = ["method", "runs", "tokens", *(["bits/weight"] if with_bits else [])]
    if len(names) > 1:
        header += ["mean gap", "sd"]
    for domain in names:
        header += [f"{domain} loss", "gap", "sd"]
    rows = []
    for group in groups:
        cells = [group["method"], str(group["runs"]), count(group["tokens"])]
        if with_bits:
            cells.append(number(group["bits_per_weight"], ".2f"))
        if len(names) > 1:
            cells += [percent(group["gap"], "+.2f"), percent(group["gap_sd"], ".2f")]
        for numbers in (group["domains"][name] for name in names):
            cells.append(number(numbers["loss"]))
            cells.append(percent(numbers["gap"], "+.2f"))
            cells.append(percent(numbers["gap_sd"], ".2f"))
        rows.append(cells)
    return header, rows


def _answers_table(answers: Sequence[Comparison]) -> Table:
    names = list(answers[0]["domains"])
    # Runs that were fine-tuned on a domain were judged on that one alone.
    of_domain = any(domain_of(answer["pattern"]) for answer in answers)
    header = ["question", "with", "without", "on" if of_domain else "pattern", "runs"]
    for domain in ["difference"] if of_domain else names:
        what = "difference of loss"
        header += [what if of_domain else f"{domain}: {what}", "answer"]
    rows = []
    for _, same in groupby(answers, key=lambda answer: answer["question"]):
        for index, answer in enumerate(same):
            numbers = list(answer["domains"].values())
            cells = ["" if index else answer["question"], answer["with"]]
            cells += [answer["without"], title_of(answer["pattern"]) or MISSING]
            cells.append(str(max((n["runs"] for n in numbers), default=0)))
            if len(set(answer["tokens"])) > 1:
                cells[2] += f" (at {count(answer['tokens'][1])} tokens)"
            if of_domain:
                own = domain_of(answer["pattern"])
                numbers = [answer["domains"][own]] if own else numbers[:1]
            for found in numbers:
                error = number(found["standard_error"])
                cells += [f"{number(found['difference'], '+.4f')} ± {error}"]
                cells.append(found["answer"])
            rows.append(cells)
    return header, rows


def best_methods(comparison: Comparison) -> str:
    """A sentence for each pattern: the trained method with the smallest gap."""
    sentences = []
    for pattern in patterns(comparison):
        trained = [
            group
            for group in in_pattern(comparison, pattern)
            if group["gap"] is not None
            and group["sparsity"] != 0
            and not group["method"].startswith("one_shot")
        ]
        if trained:
            best, *others = trained
            where = "" if pattern is None else f"{title_of(pattern)}: "
            text = f"{where}{best['method']} is {_stated(best)} the dense control"
            names = [d for d, n in best["domains"].items() if n["gap"] is not None]
            text += f" in held-out loss (mean of {' and '.join(names)})"
            if others:
                text += f", the least of {len(trained)} methods; {others[0]['method']}"
                text += f" follows, {_stated(others[0])} it"
            sentences.append(text + ".")
    return " ".join(sentences)


def _stated(group: Comparison) -> str:
    """A mean gap as it is said, with its standard deviation."""
    gap, spread, runs = group["gap"], group["gap_sd"], group["runs"]
    side = "above" if gap >= 0 else "below"
    size = f"{abs(100 * gap):.2f}"
    if spread is None:
        return f"{size} % (one run) {side}"
    return f"{size} ± {100 * spread:.2f} % (sd of {runs} runs) {side}"


DEFINITIONS = """\
- A gap is that of one run to the control of the same seed at the same tokens; a run
  without a seed is held against the mean of the controls. Columns hold means over runs
  and sample standard deviations (sd), which say how much a repetition would differ, not
  how well the mean is known. The mean gap is over the domains, by which rows are
  sorted.
- A difference of loss is (with) - (without) in nats per token, the mean over seeds that
  both have ± its standard error. Below zero the part helps, above it hurts; within two
  standard errors, or with one seed, the runs do not resolve it. Two or three seeds make
  this a coarse rule: read the differences, too."""
