"""The pruning report: numbers follow from the rows, and say what is missing."""

import copy
import json
import re

import pytest

from sparse_jax.report import pruning_files, pruning_report, pruning_summary

WEIGHTS = {"attention/q": 100, "attention/o": 100, "mlp/gate": 300}
LAYERS = 3


def row(layer, name, **fields):
    number = 1 + layer + list(WEIGHTS).index(name)
    return {
        "layer": layer,
        "path": f"layers/{name}/kernel",
        "pattern": "unstructured@0.7",
        "weights": WEIGHTS[name],
        "sparsity": 0.7,
        "relative_error": 0.01 * number,
        "damping": 0.01,
        "seconds": 0.5 * number,
    } | fields


def evaluated(loss):
    return {"loss": loss, "perplexity": 2.718281828**loss, "bits_per_byte": loss / 2}


@pytest.fixture
def given():
    """What `run_prune` hands over."""
    source = {"data": "test.txt", "split": "all", "tokenizer": "ab" * 32}
    source |= {"tokens": 25_500, "bytes": 99_000, "window": 256, "stride": 256}
    return {
        "model": {"path": "models/small", "source": "a model", "parameters": 2_500}
        | {"dtype": "float32"},
        "settings": {"solver": "sparsegpt", "pattern": "unstructured", "damping": 0.01},
        "calibration": {"text": "train.txt", "sequences": 8, "sha256": "cd" * 32},
        "evaluation": [source | {"before": evaluated(1.0), "after": evaluated(1.25)}],
        "matrices": [row(i, name) for i in range(LAYERS) for name in WEIGHTS],
        "versions": {"jax": "0.10.2"},
    }


def cells(text, *first):
    """The cells of the one Markdown row that begins with these."""
    start = "| " + " | ".join(first) + " |"
    (line,) = [line for line in text.splitlines() if line.startswith(start)]
    return [cell.strip() for cell in line.strip("|").split("|")]


def markdown(given):
    return pruning_files(pruning_report(given))["prune_report.md"].decode()


def test_totals_and_means(given):
    given["matrices"][0]["sparsity"] = 0.5
    report = pruning_report(given)
    total, (q, o, gate) = report["total"], report["by_matrix"]
    assert (total["matrices"], total["weights"]) == (9, 1500)
    assert total["sparsity"] == pytest.approx((1400 * 0.7 + 100 * 0.5) / 1500)
    assert total["sparsity_of_all"] == pytest.approx((1400 * 0.7 + 100 * 0.5) / 2500)
    assert total["relative_error"] == pytest.approx(0.03)
    assert total["seconds"] == pytest.approx(0.5 * 27)
    assert [row["path"] for row in (q, o, gate)] == [
        f"layers/{name}/kernel" for name in WEIGHTS
    ]
    assert q["sparsity"] == pytest.approx(1.9 / 3)
    assert gate["relative_error"] == pytest.approx(0.04)
    assert gate["weights"] == 900 and gate["matrices"] == LAYERS


def test_markdown_and_summary_say_the_same(given):
    text = markdown(given)
    summary = pruning_summary(pruning_report(given))
    headline = text.splitlines()[2]
    assert headline in summary.splitlines()
    assert "70.0 % of the weights of 9 matrices are zero (42.0 % of all" in headline
    assert "mean relative error is 0.0300" in headline
    assert "Perplexity on test.txt: 2.718 to 3.490." in headline
    assert cells(text, "test.txt")[1:4] == ["25,500", "1.0000", "1.2500"]
    one = cells(text, "2", "mlp/gate")
    assert one[2:] == ["unstructured@0.7", "70.00 %", "0.0500", "2.5 s", "0.01"]
    assert cells(text, "all")[1:4] == ["9", "1,500", "70.0 %"]
    assert "![Relative error of every pruned matrix" in text
    assert f"- sha256: `{'cd' * 32}`" in text
    assert "Raised damping" not in text and "prune_sparsity.png" not in text


def test_raised_damping_is_said(given):
    given["matrices"][4]["damping"] = 0.1
    given["matrices"][0]["damping"] = 0.009999999776482582  # 0.01 in float32
    report = pruning_report(given)
    assert [r["damping_raised"] for r in report["matrices"]] == [False] * 4 + [True] + [
        False
    ] * 4
    assert report["total"]["damping_raised"] == 1
    text = pruning_files(report)["prune_report.md"].decode()
    assert "- layer 1, attention/o: 0.1\n" in text
    assert cells(text, "1", "attention/o")[-1] == "0.1 raised"


def test_without_calibration_and_evaluation(given):
    given |= {"calibration": None, "evaluation": []}
    nothing = {"relative_error": None, "damping": None}
    given["matrices"] = [row | nothing for row in given["matrices"]]
    report = pruning_report(given)
    assert report["total"]["relative_error"] is None
    files = pruning_files(report)
    assert sorted(files) == ["prune_report.json", "prune_report.md"]
    text = files["prune_report.md"].decode()
    assert "Evaluation" not in text and "Calibration" not in text
    assert "relative error is" not in text and "Plots" not in text
    assert cells(text, "0", "mlp/gate")[-3] == "-"
    assert "Perplexity" not in pruning_summary(report)


def test_uneven_sparsity_is_drawn(given):
    for matrix in given["matrices"]:
        matrix["sparsity"] = 0.5 + 0.1 * matrix["layer"]
    files = pruning_files(pruning_report(given))
    assert sorted(files) == [
        "prune_error.png",
        "prune_report.json",
        "prune_report.md",
        "prune_sparsity.png",
    ]
    for name in ("prune_error.png", "prune_sparsity.png"):
        assert files[name].startswith(b"\x89PNG") and b"matplotlib" not in files[name]
        assert f"({name})" in files["prune_report.md"].decode()


def test_equal_numbers_give_equal_bytes(given):
    assert pruning_files(pruning_report(copy.deepcopy(given))) == pruning_files(
        pruning_report(given)
    )


def test_json_holds_all_of_it_and_no_infinity(given):
    given["evaluation"][0]["after"]["perplexity"] = float("inf")
    report = pruning_report(given)
    files = pruning_files(report)
    assert json.loads(files["prune_report.json"]) == report
    assert report["evaluation"][0]["after"]["perplexity"] is None
    for name, value in given.items():
        if name not in ("matrices", "evaluation"):
            assert report[name] == value
    # A dash where there is no number.
    assert re.search(r"2\.718 to -\.", files["prune_report.md"].decode())
