"""What packed files hold, lose and gain, as a table."""

from collections.abc import Sequence

from sparse_jax.report.text import MISSING, Report, domains, number, percent

DEFINITIONS = """\
A packed model's loss is computed by its own kernels, which round the inputs of matrices
in integers to 8 bits. Decoding is measured with random weights of a model that no cache
holds, in the same storage type and with such zeros, one token at a time, against dense
float32 in the same process; its limit is the ratio of the bytes that a token reads."""


def packed_table(rows: Sequence[Report]) -> tuple[list[str], list[list[str]]]:
    """Header and rows.

    Args:
      rows: of the stages that pack, with `paper`, what a paper says of the speed-up.
    """
    names = domains(rows)
    header = ["model", "zeros", "storage type", "bits/weight", "file KB"]
    header += [f"{name} loss" for name in names]
    header += ["dense tokens/s", "tokens/s", "speed-up", "limit", "published"]
    return header, [_row(row, names) for row in rows]


def _row(row: Report, names: Sequence[str]) -> list[str]:
    cells = [
        row["model"],
        percent(row["sparsity"]),
        ", ".join(row["formats"]),
        number(row["bits_per_weight"], ".2f"),
        number(row["file_bytes"] / 1e3, ",.0f"),
    ]
    cells += [number(row["domains"].get(name, {}).get("loss")) for name in names]
    speed = row.get("decode") or {}
    cells += [number(speed.get(name), ".1f") for name in ("dense", "packed")]
    for name in ("speedup", "limit"):
        cells.append(MISSING if name not in speed else f"{speed[name]:.1f}x")
    return [*cells, row.get("paper") or MISSING]
