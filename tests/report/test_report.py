"""The report: numbers arrive, equal numbers give equal bytes, gaps in it are legal."""

import copy
import json
import re

import numpy as np
import pytest

from sparse_jax.report import (
    add_gaps,
    markdown,
    relative_gap,
    summary,
    training_plots,
    write_report,
)
from sparse_jax.report import plots as plots_module
from sparse_jax.report.curves import gap_curve, loss_curve, running_mean
from sparse_jax.types import InputError

PLOTS = ["gap.png", "loss.png", "one_shot.png", "sparsity.png"]


def names(directory):
    return sorted(path.name for path in directory.iterdir())


def cells(text, first):
    """The cells of the Markdown row that begins with `first`, table by table."""
    rows = [line for line in text.splitlines() if line.startswith(f"| {first} |")]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]


def test_files(report, histories, tmp_path):
    write_report(report, histories, tmp_path / "run")
    assert names(tmp_path / "run") == sorted([*PLOTS, "report.json", "report.md"])
    for name in PLOTS:
        png = (tmp_path / "run" / name).read_bytes()
        assert png.startswith(b"\x89PNG")
        assert b"matplotlib" not in png
        assert b"tIME" not in png


def test_equal_numbers_give_equal_bytes(report, histories, tmp_path):
    for name in ("a", "b"):
        write_report(copy.deepcopy(report), histories, tmp_path / name)
    for name in names(tmp_path / "a"):
        a, b = (tmp_path / run / name for run in ("a", "b"))
        assert a.read_bytes() == b.read_bytes(), name


def test_json_holds_what_was_given_and_the_gaps(report, histories, tmp_path):
    returned = write_report(report, histories, tmp_path)
    written = json.loads((tmp_path / "report.json").read_text())
    assert written == returned
    assert "gap" not in report["models"][0]  # the caller's report is left alone
    for given, row in zip(report["models"], written["models"], strict=True):
        assert given.items() <= row.items()
    gaps = {row["name"]: row["gap"]["code"] for row in written["models"]}
    assert gaps["trained_70"] == pytest.approx(0.0065)
    assert gaps["one_shot_50"] == pytest.approx(0.21 / 2.725, rel=1e-3)
    assert gaps["trained_50"] is None  # the control was not evaluated there
    assert gaps["dense_control"] is None


def test_gap_needs_equal_tokens():
    def row(name, tokens, loss):
        return {"name": name, "tokens": tokens, "domains": {"code": {"loss": loss}}}

    rows = [
        row("dense", 10, 3.0),
        row("trained_50", 20, 2.2),
        row("trained_70", 30, 2.1),
        row("dense_control_50", 20, 2.0),
        row("dense_control", 29, 2.0),
    ]
    gaps = {row["name"]: row["gap"]["code"] for row in add_gaps(rows)}
    assert gaps["trained_50"] == relative_gap(2.2, 2.0) == pytest.approx(0.1)
    assert gaps["trained_70"] is None


def test_a_gap_that_was_given_stays(report, histories, tmp_path):
    report["models"][2]["gap"] = {"code": 0.123, "prose": None}
    written = write_report(report, histories, tmp_path)
    assert written["models"][2]["gap"] == {"code": 0.123, "prose": None}


def test_markdown_says_the_result_and_every_row(report, histories, tmp_path):
    write_report(report, histories, tmp_path)
    text = (tmp_path / "report.md").read_text()
    assert text.startswith("# sparse70\n\ntrained_70: 70.0 % of the pruned matrices")
    assert "0.65 % above it on code and 0.59 % above it on prose" in text
    quality, cost = cells(text, "trained_70")
    assert quality[1:5] == ["70.0 %", "52.5 %", "2.20M", "2.5503"]
    assert quality[-1] == "+0.59 %"
    assert cost[2:4] == ["25.1 s", "41,234"]
    for name in PLOTS:
        assert f"]({name})" in text
    for fact in ("3.11.9", "cd" * 32, "launch/train.py", "windows of 256 tokens"):
        assert fact in text
    assert "/tmp" not in text


def test_one_shot_table_marks_the_best(report):
    code, prose = cells(markdown(report, {}), "sparsegpt")
    assert code[1] == "**2.9250**"
    assert prose[4].startswith("**")
    assert not any("**" in cell for cell in cells(markdown(report, {}), "wanda")[0])


def test_summary_is_aligned(report):
    text = summary({**report, "models": add_gaps(report["models"])})
    lines = text.split("\n\n")[1].splitlines()
    assert len(lines) == 7
    assert len({len(line) for line in lines}) == 1
    assert re.search(r"trained_70 +70\.0 % +2\.20M +2\.5503 +\+0\.65 %", text)
    assert text.endswith("0.59 % above it on prose.")


@pytest.mark.parametrize(
    ("section", "absent"),
    [
        ("models", ["gap.png"]),
        ("one_shot", ["one_shot.png"]),
        ("layers", ["sparsity.png"]),
        ("corpus", []),
        ("evaluation", []),
        ("name", []),
    ],
)
def test_a_missing_section_is_left_out(report, histories, tmp_path, section, absent):
    del report[section]
    write_report(report, histories if section != "models" else {}, tmp_path)
    found = names(tmp_path)
    assert not set(absent) & set(found)
    assert {"report.md", "report.json"} <= set(found)
    text = (tmp_path / "report.md").read_text()
    assert all(f"({name})" not in text for name in absent)


def test_empty_report(tmp_path):
    write_report({}, {}, tmp_path)
    assert names(tmp_path) == ["report.json", "report.md"]
    text = (tmp_path / "report.md").read_text()
    assert "No sparse model was trained" in text
    assert "No model was evaluated" in summary({})


def test_no_control(report, histories, tmp_path):
    report["models"] = [row for row in report["models"] if "dense" not in row["name"]]
    kept = {name: rows for name, rows in histories.items() if "dense" not in name}
    write_report(report, kept, tmp_path)
    assert "no dense control was evaluated" in (tmp_path / "report.md").read_text()
    assert "gap.png" not in names(tmp_path)


def test_rows_with_holes(report, tmp_path):
    report["models"].append({"name": "quantized"})
    report["models"].append({"name": "small_dense", "domains": {"math": {"loss": 2.0}}})
    report["models"][4]["domains"]["prose"] = {"loss": float("nan")}
    report["models"][4]["seconds"] = np.float32(12.5)
    report["one_shot"].append({"method": "admm", "sparsity": 0.6, "domains": {}})
    write_report(report, {"dense": [], "trained_50": [{"step": 1}]}, tmp_path)
    text = (tmp_path / "report.md").read_text()
    written = json.loads((tmp_path / "report.json").read_text())
    assert written["models"][4]["domains"]["prose"]["loss"] is None
    assert cells(text, "quantized")[0][1:] == ["-"] * 15
    assert cells(text, "admm")[0][1:] == ["-"] * 5
    assert "math loss" in summary(written)


def test_other_names_and_domains(histories, tmp_path):
    rows = [
        {"name": "dense", "tokens": 5, "domains": {"wiki": {"loss": 2.0}}},
        {
            "name": "finetuned",
            "sparsity_pruned": 0.6,
            "tokens": 5,
            "domains": {"wiki": {"loss": 1.9}},
        },
    ]
    write_report({"name": "x", "models": rows}, {}, tmp_path)
    assert "5.00 % below it on wiki" in (tmp_path / "report.md").read_text()


@pytest.mark.parametrize(
    ("section", "row", "message"),
    [
        ("models", {"tokens": 3}, r"report\.models\[6\] has no 'name', found"),
        ("one_shot", {"method": "admm"}, r"report\.one_shot\[12\] has no 'sparsity'"),
    ],
)
def test_unidentified_rows(report, tmp_path, section, row, message):
    report[section].append(row)
    with pytest.raises(InputError, match=message):
        write_report(report, {}, tmp_path)
    assert names(tmp_path) == []


def test_unwritable_directory(report, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"file/run/.* cannot be written"):
        write_report(report, {}, tmp_path / "file" / "run")


def test_a_failed_write_keeps_the_old_file(tmp_path, monkeypatch):
    write_report({"name": "old"}, {}, tmp_path)
    before = (tmp_path / "report.md").read_bytes()

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("sparse_jax.files.os.fsync", fail)
    with pytest.raises(InputError, match="No space left on device"):
        write_report({"name": "new"}, {}, tmp_path)
    assert (tmp_path / "report.md").read_bytes() == before
    assert names(tmp_path) == ["report.json", "report.md"]


def test_gap_curve_cancels_the_noise_of_equal_batches():
    noise = np.random.default_rng(0).normal(size=200)
    control = {float(t): 2 + 0.1 * noise[t] for t in range(200)}
    rows = [{"tokens": t, "loss": 1.02 * control[t]} for t in range(50, 200)]
    rows.append({"tokens": 1000, "loss": 3.0})  # the control has no such row
    tokens, gap = gap_curve(rows, control)
    assert tokens.tolist() == list(range(50, 200))
    np.testing.assert_allclose(gap, 0.02, rtol=1e-9)


def test_running_mean_keeps_lines():
    line = np.linspace(3.0, 1.0, 31)
    np.testing.assert_allclose(running_mean(line, 7), line)
    tokens, loss = loss_curve([{"tokens": 1, "heldout/code": 2.0}])
    assert len(tokens) == len(loss) == 0


def test_every_panel_is_labelled(report, histories):
    report["models"] = add_gaps(report["models"])
    for draw in (
        training_plots.draw_loss,
        training_plots.draw_gap,
        plots_module._draw_one_shot,
        plots_module.draw_sparsity,
    ):
        figure, caption = draw(report, histories)
        assert caption.endswith(".")
        panels = [axis for axis in figure.axes if axis.get_label() != "<colorbar>"]
        assert all(axis.get_xlabel() for axis in panels)
        assert panels[0].get_ylabel() or panels[0].get_yticklabels()[0].get_text()


def test_deep_models_fit_the_heat_map(tmp_path):
    rows = [
        {"path": f"layers/mlp/{name}/kernel", "layer": layer, "sparsity": layer / 80}
        for name in ("up", "down")
        for layer in range(80)
    ]
    write_report({"layers": {"trained_70": rows}}, {}, tmp_path)
    assert "sparsity.png" in names(tmp_path)
