"""Numbers and tables as text."""

from collections.abc import Mapping, Sequence
from typing import Any

Report = Mapping[str, Any]
Number = int | float

MISSING = "-"


def number(value: Number | None, form: str = ".4f") -> str:
    """A number in a format, or a dash where there is none."""
    return MISSING if value is None else format(value, form)


def percent(value: Number | None, form: str = ".1f") -> str:
    """A fraction as a percentage.

    Example:
      >>> percent(0.503), percent(-0.00123, "+.2f"), percent(None)
      ('50.3 %', '-0.12 %', '-')
    """
    return MISSING if value is None else f"{100 * value:{form}} %"


def count(value: Number | None) -> str:
    """A count with a unit: k, M, G, T or, beyond, a power of ten.

    Example:
      >>> count(512), count(2_130_000), count(3.1e12), count(4.2e17)
      ('512', '2.13M', '3.10T', '4.2e17')
    """
    if value is None:
        return MISSING
    if value >= 1e15:
        return f"{value:.3g}".replace("e+", "e")
    for size, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:#.3g}".rstrip(".") + unit
    return f"{value:.0f}"


def duration(seconds: Number | None) -> str:
    """Seconds as people say them.

    Example:
      >>> duration(0.0042), duration(4.26), duration(83), duration(7500)
      ('4.2 ms', '4.3 s', '1 min 23 s', '2 h 05 min')
    """
    if seconds is None:
        return MISSING
    if 0 < seconds < 0.0995:
        return f"{1000 * seconds:.1f} ms"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    if seconds < 3599.5:
        return f"{round(seconds) // 60} min {round(seconds) % 60:02d} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min"


def domains(rows: Sequence[Report]) -> list[str]:
    """Every domain that some row was evaluated on, in order of appearance."""
    return list(dict.fromkeys(name for row in rows for name in row.get("domains", {})))


def loss_of(row: Report, domain: str) -> Number | None:
    """A row's held-out loss on a domain."""
    return row.get("domains", {}).get(domain, {}).get("loss")


def plain_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """An aligned table: the first column to the left, the others to the right.

    Example:
      >>> print(plain_table(["model", "loss"], [["dense", "2.1"], ["small", "12.1"]]))
      model  loss
      dense   2.1
      small  12.1
    """
    lines = [list(header), *(list(row) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )
