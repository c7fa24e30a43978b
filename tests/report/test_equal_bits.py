"""The chart and the table of loss against bits, and the table of packed files."""

import json

import pytest

from sparse_jax.report import write_report
from sparse_jax.report.equal_bits import complete_points, equal_bits_table

DENSE = {"code": 2.0, "prose": 3.0}


def point(name, family, bits, own, loss, **fields):
    losses = {"code": 2.0 + loss, "prose": 3.0 + loss}
    row = {"name": name, "family": family, "bits": bits, "training": ""}
    row |= {"loss": losses, "own_bits": own, "file_bits": None, "format": None}
    return row | {"packed_loss": {}, "speedup": None} | fields


POINTS = [
    point("dense_16", "dense", 16, 16.0, 0.0, file_bits=16.0, speedup=2.0),
    point("dense_4", "dense", 4, 4.12, 0.05, file_bits=4.25, speedup=6.0),
    point("worse", "2:4", 8, 5.0, 0.06, file_bits=6.1, speedup=5.0),
    point("small", "group:16", 4, 2.6, 0.3, file_bits=2.9, speedup=11.0),
    point(
        "trained",
        "group:16",
        4,
        2.6,
        0.1,
        training="blocks and scales",
        file_bits=2.9,
        speedup=11.0,
        packed_loss={"code": 2.11, "prose": 3.13},
    ),
]
FOUND = {"dense": DENSE, "points": POINTS}


def test_losses_are_means_above_the_dense_model():
    rows = {row["name"]: row for row in complete_points(FOUND)}
    assert rows["small"]["added_loss"] == pytest.approx(0.3)
    assert rows["trained"]["added_by_inputs"] == pytest.approx(0.02)
    assert rows["small"]["added_by_inputs"] is None


def test_best_are_those_that_none_beats():
    best = {row["name"]: row["best"] for row in complete_points(FOUND)}
    assert best == {
        "dense_16": "ofs",
        "dense_4": "ofs",
        "worse": "",
        "small": "",
        "trained": "ofs",
    }


def test_table_is_ordered_by_bits():
    header, rows = equal_bits_table(complete_points(FOUND))
    assert [float(row[header.index("own bits")]) for row in rows] == sorted(
        (p["own_bits"] for p in POINTS), reverse=True
    )
    assert {len(row) for row in rows} == {len(header)}


PACKED = {
    "model": "quantized",
    "paper": "up to 8.6x with INT8",
    "formats": {"ell_int8": 100},
    "sparsity": 0.7,
    "bits_per_weight": 4.6,
    "file_bytes": 123_456,
    "domains": {"code": {"loss": 3.7}},
    "decode": {"dense": 10.0, "packed": 60.0, "speedup": 6.0, "limit": 7.0},
}


def test_seeds_are_one_point():
    rows = [
        point(f"x_seed{n}", "2:4", 4, 3.0, 0.1 * n, zero_point=True) for n in (1, 2)
    ]
    (row,) = complete_points({"dense": DENSE, "points": rows})
    assert row["added_loss"] == pytest.approx(0.15) and row["seeds"] == 2
    _, ((_, value, trained, *_),) = equal_bits_table([row])
    assert (value, trained) == ("4 bits and zero", "no, 2 seeds")


def test_report_has_both(tmp_path):
    report = {"name": "run", "models": [], "equal_bits": FOUND, "packed": [PACKED]}
    first, second = tmp_path / "a", tmp_path / "b"
    write_report(report, {}, first)
    write_report(report, {}, second)
    text = (first / "report.md").read_text()
    assert "## Loss against bits" in text and "equal_bits.png" in text
    assert "| quantized | 70.0 % | ell_int8 | 4.60 | 123 | 3.7000 |" in text
    assert "6.0x | 7.0x | up to 8.6x with INT8" in text
    assert (first / "equal_bits.png").read_bytes() == (
        second / "equal_bits.png"
    ).read_bytes()
    assert json.loads((first / "report.json").read_text())["equal_bits"]["points"]


def test_report_without_points_has_no_chart(tmp_path):
    write_report({"name": "run", "models": [], "equal_bits": None}, {}, tmp_path)
    assert not (tmp_path / "equal_bits.png").exists()
