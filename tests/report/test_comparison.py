"""Methods compared over seeds: groups, gaps, answers, what pictures leave out."""

import copy
import json
import statistics

import pytest

from sparse_jax.report import add_gaps, summary, write_report
from sparse_jax.report.comparison import compare
from sparse_jax.report.curves import control_losses, loss_curve, training_loss
from sparse_jax.report.method_plots import draw_flip_layers, draw_masks
from sparse_jax.report.names import parse
from sparse_jax.report.training_plots import MOST, drawn
from sparse_jax.types import InputError


def row(name, loss, tokens=20, **fields):
    given = {"name": name, "tokens": tokens, "domains": {"code": {"loss": loss}}}
    return given | {"sparsity_pruned": 0.5} | fields


def gaps(*rows):
    return {found["name"]: found["gap"]["code"] for found in add_gaps(rows)}


def compared(*rows, questions=()):
    return compare(add_gaps(rows), questions)


def group(comparison, name):
    (found,) = [found for found in comparison["groups"] if found["name"] == name]
    return found


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("ast_slorb_2of4_seed1", ("ast_slorb", "2of4", 1)),
        ("fixed_mask_kd_u70_seed12", ("fixed_mask_kd", "u70", 12)),
        ("one_shot_5of16", ("one_shot", "5of16", None)),
        ("dense_control_seed0", ("dense_control", None, 0)),
        ("cast_g8", ("cast", "g8", None)),
        ("2of4", ("2of4", None, None)),
        ("trained_70", ("trained_70", None, None)),
        ("ast_seed1_2of4", ("ast_seed1", "2of4", None)),
    ],
)
def test_names(name, parts):
    assert parse(name) == parts


def test_gaps_are_to_the_control_of_the_same_seed():
    found = gaps(
        row("dense_control_seed0", 2.0),
        row("dense_control_seed1", 2.5),
        row("dense_control_seed2", 5.0, tokens=19),
        row("ast_2of4_seed0", 2.2),
        row("ast_2of4_seed1", 2.5),
        row("ast_2of4_seed7", 3.0),
        row("one_shot_2of4", 4.5),
    )
    assert found["ast_2of4_seed0"] == pytest.approx(0.1)
    assert found["ast_2of4_seed1"] == pytest.approx(0.0)
    assert found["ast_2of4_seed7"] == pytest.approx(0.5)  # no control has seed 7
    assert found["one_shot_2of4"] == pytest.approx(1.0)  # 4.5 / mean(2.0, 2.5) - 1
    assert found["dense_control_seed0"] is None


def test_a_control_without_a_loss_on_a_domain_is_passed_over():
    missing = row("dense_control_seed1", None)
    found = gaps(missing, row("dense_control_seed0", 2.0), row("ast_seed1", 3.0))
    assert found["ast_seed1"] == pytest.approx(0.5)


def test_groups_hold_means_and_sample_deviations():
    controls = [row(f"dense_control_seed{i}", 2.0) for i in range(3)]
    asts = [
        row(f"ast_2of4_seed{i}", loss, bits_per_weight=9.0 + i)
        for i, loss in enumerate((2.2, 2.3, 2.4))
    ]
    found = compared(*asts, row("sr_ste_2of4_seed0", 2.1), *controls)
    ast, single = group(found, "ast_2of4"), group(found, "sr_ste_2of4")
    assert [g["name"] for g in found["groups"]] == [
        "dense_control",
        "sr_ste_2of4",
        "ast_2of4",
    ]
    assert ast["seeds"] == [0, 1, 2] and ast["runs"] == 3
    assert ast["gap"] == pytest.approx(0.15)
    assert ast["gap_sd"] == pytest.approx(statistics.stdev([0.1, 0.15, 0.2]))
    assert ast["domains"]["code"]["loss"] == pytest.approx(2.3)
    assert ast["bits_per_weight"] == pytest.approx(10.0)
    assert single["gap_sd"] is None and single["bits_per_weight"] is None


def test_what_is_worth_comparing():
    few = [row("ast", 2.2), row("cast", 2.3), row("dense_control", 2.0)]
    assert compared(*few) is None
    assert compared(*few, row("dpf", 2.4, tokens=21)) is None
    assert compared(*few, row("small_dense", 2.4)) is None
    assert compared(*few, row("dpf", 2.4)) is not None
    assert compared(row("ast_seed0", 2.2), row("ast_seed1", 2.3)) is not None


@pytest.mark.parametrize(
    ("losses", "error", "answer"),
    [
        ((-0.3, -0.15), 0.075, "helps"),
        ((0.3, 0.15), 0.075, "hurts"),
        ((0.3, -0.1), 0.2, "not resolved"),
        ((-0.1, -0.3, 0.1), 0.2 / 3**0.5, "not resolved"),
        ((-0.3,), None, "not resolved"),
        ((0.0, 0.0), 0.0, "not resolved"),
    ],
)
def test_answers_pair_the_seeds(losses, error, answer):
    # Seeds differ by far more than the methods, which pairs cancel.
    base = [row(f"fixed_u70_seed{i}", 2.0 + 5 * i) for i in range(len(losses))]
    kd = [
        row(f"kd_u70_seed{i}", 2.0 + 5 * i + difference)
        for i, difference in enumerate(losses)
    ]
    alone = [row("fixed_u70_seed8", 99.0), row("ast_seed0", 1), row("ast_seed1", 1)]
    question = {"question": "does it help?", "with": "kd", "without": "fixed"}
    found = compared(*base, *kd, *alone, questions=[question])
    (given,) = found["answers"]
    code = given["domains"]["code"]
    assert given["pattern"] == "u70" and code["runs"] == len(losses)
    assert code["difference"] == pytest.approx(statistics.fmean(losses))
    assert code["standard_error"] == (error if error is None else pytest.approx(error))
    assert code["answer"] == answer


def test_runs_of_other_seeds_resolve_nothing():
    rows = [row("a_seed0", 2.0), row("a_seed1", 2.0), row("b_seed2", 9.0)]
    questions = [
        {"question": "?", "with": "a", "without": "b"},
        {"question": "?", "with": "a", "without": "c"},
    ]
    apart, absent = compared(*rows, questions=questions)["answers"]
    assert apart["domains"]["code"]["difference"] == pytest.approx(-7.0)
    assert apart["domains"]["code"]["answer"] == "not resolved"
    assert absent["domains"]["code"]["answer"] == "not run"


def test_report_of_an_ablation(ablation, tmp_path):
    report, histories = copy.deepcopy(ablation)
    written = write_report(report, histories, tmp_path)
    assert json.loads((tmp_path / "report.json").read_text()) == written
    text = (tmp_path / "report.md").read_text()
    for name in ("comparison", "masks", "flip_layers", "distill", "loss", "gap"):
        assert f"]({name}.png)" in text
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    head = text.splitlines()[2]
    for pattern in ("2of4", "u70"):
        best = group(written["comparison"], f"ast_slorb_{pattern}")
        stated = f"{100 * best['gap']:.2f} ± {100 * best['gap_sd']:.2f} % (sd of 2 runs"
        assert f"{pattern}: ast_slorb is {stated}" in head
        assert f"### Methods, {pattern}\n" in text
    assert "| does SLoRB help? | ast_slorb | ast | 2of4 | 2 |" in text
    printed = summary(written)
    assert "Methods, u70\nmethod " in printed and head in printed
    assert "fixed_mask_u70_seed1" not in printed


def test_a_question_needs_its_methods(ablation, tmp_path):
    report = ablation[0] | {"comparisons": [{"question": "?", "with": "ast"}]}
    with pytest.raises(InputError, match=r"report\.comparisons\[0\] has no 'without'"):
        write_report(report, {}, tmp_path)


def test_crowded_pictures_draw_one_seed(ablation):
    report, histories = ablation
    report = {**report, "models": add_gaps(report["models"])}
    kept_report, kept, note = drawn(report, histories)
    assert len(kept) == MOST and {"dense", "dense_control_seed0"} <= set(kept)
    assert {"ast_slorb_2of4_seed0", "cast_2of4_seed0"} <= set(kept)
    assert not any(name.endswith("seed1") for name in kept)
    assert f"{MOST} of {len(histories)} trained stages" in note and "seed 0" in note
    names = {found["name"] for found in kept_report["models"]}
    assert names == {*kept, "one_shot_2of4", "one_shot_u70"}
    few = dict(list(histories.items())[:MOST])
    assert drawn(report, few) == (report, few, "")


def test_plots_of_methods_need_numbers(ablation):
    report, histories = ablation
    plain = {name: rows for name, rows in histories.items() if "fixed_mask" in name}
    assert draw_masks(report, plain) is None and draw_flip_layers(report, plain) is None
    figure, _ = draw_masks(report, histories)
    flips = figure.axes[0]
    assert flips.get_yscale() == "log" and flips.get_title().startswith("2of4")
    assert len(flips.lines) == 5
    ends = [line.get_ydata()[[0, -1]] for line in flips.lines]
    assert all(first > 0 and last != last for first, last in ends)  # frozen: no point
    assert figure.axes[2].lines[0].get_ydata()[0] == 1


def test_training_curves_compare_cross_entropy(ablation):
    rows = ablation[1]["ast_2of4_seed0"]
    assert training_loss(rows)[1].tolist() == [r["cross_entropy"] for r in rows[:-1]]
    assert len(loss_curve(rows)[0]) == len(rows) - 1


def test_controls_of_other_seeds_saw_other_batches():
    histories = {
        name: [{"tokens": tokens, "loss": loss}]
        for name, tokens, loss in (
            ("dense", 1, 3.0),
            ("dense_control_seed0", 2, 2.0),
            ("dense_control_seed1", 2, 2.5),
        )
    }
    assert control_losses(histories, 0) == {1: 3.0, 2: 2.0}
    assert control_losses(histories, 1) == {1: 3.0, 2: 2.5}
    assert control_losses(histories, 4) == {1: 3.0}
