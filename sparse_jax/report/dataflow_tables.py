"""Tables of a simulated machine, as rows of text.

The numbers are those of `sparse_jax.dataflow.sweep`, as plain data.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from sparse_jax.report.pruning_plots import short
from sparse_jax.report.text import count, number, percent

Numbers = Mapping[str, Any]
Table = tuple[list[str], list[list[str]]]

CAUSES = {
    "compute": "compute",
    "imbalance": "load imbalance",
    "trigger": "triggers",
    "rows": "ends of rows",
    "stream": "weight stream",
    "latency": "latency",
    "attention": "attention",
    "head": "head",
    "embedding": "embedding",
    "elementwise": "norms, softmax, SiLU",
}
"""What time goes to, by key, in the order of tables and plots."""


def headline(numbers: Numbers) -> str:
    """The result in words."""
    work, machine = numbers["work"], numbers["machine"]["name"]
    what = {
        "training": f"a training step of {_sequences(work)}",
        "prefill": f"reading {_sequences(work)}",
        "decode": f"a token for each of {work['batch']} sequences after "
        f"{work['context']:,} tokens",
    }[work["mode"]]
    best = max(numbers["rows"], key=lambda row: row["sparsity"])
    return (
        f"{numbers['model']} on {_systems(machine, work)}: {what} is "
        f"{best['step']:.2f} times as fast at {percent(best['sparsity'])} sparsity as "
        f"dense, {percent(best['step_efficiency'], '.0f')} of the ideal "
        f"{best['step_ideal']:.2f}."
    )


def _sequences(work: Numbers) -> str:
    return f"{work['batch']} x {work['context']:,} tokens"


def _systems(machine: str, work: Numbers) -> str:
    return machine if work["systems"] == 1 else f"{work['systems']} {machine}"


def batch(work: Numbers) -> str:
    """What the batch takes of the memory."""
    used, room = work["activation_bytes"] / 1e9, work["activation_room"] / 1e9
    return (
        f"Activations take {used:.3g} of the {room:.3g} GB that SRAM has for them; "
        f"at most {work['largest_batch']} sequences fit."
    )


def tables(numbers: Numbers) -> dict[str, Table]:
    """Every table by its title, as far as there is something to see in it."""
    found = {
        "Speed-up over the dense model": speedup_table(numbers),
        "Where the time goes (per step)": _causes(numbers),
        "By matrix (time when dense, speed-up)": _by_matrix(numbers),
    }
    layers = numbers["rows"][0]["by_layer"]
    if any(row != layers[0] for row in layers):
        found["By layer (matrices alone)"] = _by_layer(layers)
    found["What balance is worth (matrices / step)"] = _balance(numbers["balance"])
    if numbers["sensitivity"]:
        title = f"At {percent(numbers['sensitivity']['sparsity'])}: the speed-up of the"
        found[f"{title} step with other constants"] = _sensitivity(numbers)
    return found


def speedup_table(numbers: Numbers) -> Table:
    """Speed-ups beside their ideals, and their ranges."""
    work = numbers["work"]
    kinds = ["kept", "dense"] if work["mode"] == "training" else []
    ideals = [f"ideal, {kind} dW" for kind in kinds] or ["ideal"]
    header = ["masks", "sparsity", "1/(1-s)", "matrices", "of their ideal"]
    header += ["step", *ideals, _of_ideal(work), "tokens/s"]
    dense = ["dense", "0.0 %", "1.00", "1.00", "", "1.00", *["1.00"] * len(ideals), ""]
    lines = [[*dense, count(numbers["dense"]["tokens_per_second"])]]
    for row in numbers["rows"]:
        found = [row["step_ideals"][kind] for kind in kinds] or [row["step_ideal"]]
        cells = [row["masks"], percent(row["sparsity"]), number(row["ideal"], ".2f")]
        cells += [number(row["matrices"], ".2f"), _share(row["matrices_efficiency"])]
        cells += [number(row["step"], ".2f"), *(number(x, ".2f") for x in found)]
        cells += [_share(row["step_efficiency"]), count(row["tokens_per_second"])]
        lines.append(cells)
    if numbers["sensitivity"]:
        header += ["range, matrices", "range, step"]
        lines[0] += ["", ""]
        ranges = numbers["sensitivity"]["ranges"]
        for cells, ends in zip(lines[1:], ranges, strict=True):
            cells += [_range(ends, "matrices"), _range(ends, "step")]
    return header, lines


def _of_ideal(work: Numbers) -> str:
    kind = work["weight_gradient"]
    return f"of ideal, {kind} dW" if kind else "of ideal"


def legend(work: Numbers) -> str:
    """What the columns of `speedup_table` are."""
    text = (
        "Matrices: the seven linears of every layer, in all passes. Step: with "
        "attention, head, embedding and norms, which stay dense."
    )
    if work["weight_gradient"]:
        text += (
            f" Weight gradients (dW) are simulated at {_POSITIONS[work[_GRADIENT]]}; "
            "shares are of the ideal with these."
        )
    return text


_GRADIENT = "weight_gradient"
_POSITIONS = {"kept": "kept positions alone", "dense": "all positions"}


def _share(value: float) -> str:
    return percent(value, ".0f")


def _range(ends: Numbers, name: str) -> str:
    return f"{ends['least'][name]:.2f} - {ends['most'][name]:.2f}"


def _causes(numbers: Numbers) -> Table:
    steps = [numbers["dense"], *numbers["rows"]]
    header = ["", "dense", *(percent(row["sparsity"]) for row in numbers["rows"])]
    lines = [
        [title, *(_part(step["causes"][key], step["seconds"]) for step in steps)]
        for key, title in CAUSES.items()
    ]
    lines.append(["all", *(_part(step["seconds"], step["seconds"]) for step in steps)])
    lines.append(
        ["PF/s", *(f"{step['flops_per_second'] / 1e15:.2f}" for step in steps)]
    )
    lines.append(["groups of columns", *(str(step["groups"]) for step in steps)])
    return header, lines


def _part(seconds: float, whole: float) -> str:
    return f"{_time(seconds)} {100 * seconds / whole:5.1f} %"


def _time(seconds: float) -> str:
    """Milliseconds with three digits: columns of times compare at a glance."""
    digits = 0 if seconds >= 0.1 else 1 if seconds >= 0.01 else 2
    return f"{1000 * seconds:.{digits}f} ms"


def _by_matrix(numbers: Numbers) -> Table:
    rows = numbers["rows"]
    header = ["", "dense", *(percent(row["sparsity"]) for row in rows)]
    lines: list[list[str]] = []
    for index, first in enumerate(rows[0]["by_matrix"]):
        cells = [short(first["path"]), _time(first["dense_seconds"])]
        cells += [f"{row['by_matrix'][index]['speedup']:.2f}" for row in rows]
        lines.append(cells)
    return header, lines


def _by_layer(layers: Sequence[Numbers]) -> Table:
    header = ["layer", "sparsity", "time", "speed-up", "of ideal"]
    lines = [
        [
            str(index),
            percent(row["sparsity"]),
            _time(row["seconds"]),
            f"{row['speedup']:.2f}",
            _share(row["efficiency"]),
        ]
        for index, row in enumerate(layers)
    ]
    return header, lines


def _balance(rows: Sequence[Numbers]) -> Table:
    kinds = [key for key in rows[0] if key != "sparsity"]
    lines = [
        [percent(row["sparsity"])]
        + [f"{row[kind]['matrices']:.2f} / {row[kind]['step']:.2f}" for kind in kinds]
        for row in rows
    ]
    return ["sparsity", *kinds], lines


def _sensitivity(numbers: Numbers) -> Table:
    header = ["constant", "low", "used", "high", "at low", "at high"]
    header += ["dense at low", "at high", "sparse at low", "at high", "status"]
    machine = numbers["machine"]["constants"]
    lines = [
        [
            row["name"],
            *(f"{row[end]:g}" for end in ("low", "value", "high")),
            *(f"{row[f'at_{end}']['step']:.2f}" for end in ("low", "high")),
            *(_time(row[f"at_{end}"]["dense_seconds"]) for end in ("low", "high")),
            *(_time(row[f"at_{end}"]["seconds"]) for end in ("low", "high")),
            machine[row["name"]]["status"],
        ]
        for row in numbers["sensitivity"]["constants"]
    ]
    return header, lines


SENSITIVITY = (
    "A constant moves both times of the ratio, and each takes the layout that suits it "
    "best then: where an overhead shrinks, the dense step may gain more than the "
    "sparse one, and the speed-up falls although both are faster. Where less memory is "
    "left for activations, the batch is smaller."
)
"""Why a speed-up may fall at both ends of a constant's range."""


def crossover(numbers: Numbers) -> str:
    """From how many tokens on computation hides the weight stream."""
    points = [f"{count(numbers['dense']['crossover'])} (dense)"]
    for row in numbers["rows"]:
        points.append(f"{count(row['crossover'])} ({percent(row['sparsity'])})")
    return (
        "Tokens from which the forward computation of a layer hides its weight "
        f"stream: {', '.join(points)}."
    )


def constants_table(machine: Numbers) -> Table:
    """The constants of a machine with their ranges and sources."""
    header = ["constant", "value", "range", "unit", "status", "source"]
    lines = []
    for name, row in machine["constants"].items():
        span = f"{row['low']:g} - {row['high']:g}" if row["low"] < row["high"] else ""
        lines.append(
            [name, f"{row['value']:g}", span, row["unit"], row["status"], row["source"]]
        )
    return header, lines
