"""Recovery against numbers worked out by hand."""

import pytest

from sparse_jax.report.recovery import (
    examples_table,
    recovery,
    recovery_table,
    scores_table,
)


def row(name, loss, gap=None, tokens=100):
    gaps = {"gsm8k": gap}
    return {
        "name": name,
        "tokens": tokens,
        "domains": {"gsm8k": {"loss": loss}},
        "gap": gaps,
    }


def score(model, value, task="piqa"):
    return {
        "model": model,
        "task": task,
        "metrics": {"acc": {"value": value, "stderr": 0.1}},
    }


MODELS = [
    row("dense", 5.0, tokens=0),
    row("sparse", 5.5, 0.1, tokens=0),
    row("dense_control_on_gsm8k_seed0", 2.0),
    row("ours_on_gsm8k_seed0", 2.5, 0.25),
    row("ours_on_gsm8k_seed1", 2.0, 0.0),
    row("theirs_on_gsm8k_seed0", 4.0, 1.0),
]


def test_loss_is_held_against_the_fine_tuned_control():
    found = recovery(MODELS)
    assert [r["method"] for r in found] == ["ours", "theirs"]  # not the bases
    ours = found[0]
    assert ours["loss"]["gsm8k"]["mean"] == pytest.approx(0.9)
    assert ours["mean"]["sd"] == pytest.approx(0.1 * 2**0.5)
    assert ours["seeds"] == [0, 1]
    assert found[1]["mean"] == {"mean": 0.5, "sd": None, "runs": 1}


def test_scores_are_held_against_the_control_of_their_seed():
    control, other = "dense_control_on_gsm8k_seed0", "dense_control_on_gsm8k_seed1"
    scores = [score(control, 0.5), score(other, 0.8)]
    scores += [score("ours_on_gsm8k_seed0", 0.4), score("ours_on_gsm8k_seed1", 0.4)]
    ours = recovery([], scores)[0]
    assert ours["score"]["piqa"]["mean"] == pytest.approx((0.8 + 0.5) / 2)
    assert ours["score"]["piqa"]["value"] == pytest.approx(0.4)


def test_a_control_that_scores_nothing_leaves_the_loss():
    scores = [
        score("dense_control_on_gsm8k_seed0", 0.0),
        score("ours_on_gsm8k_seed0", 0.1),
    ]
    ours = recovery(MODELS, scores)[0]
    assert ours["score"] == {}
    assert ours["mean"]["mean"] == pytest.approx(0.9)


def test_scores_of_models_of_several_domains_stay_apart():
    pairs = [("gsm8k", 0.5, 0.4), ("mbpp", 0.8, 0.2)]
    scores = []
    for domain, dense, ours in pairs:
        scores.append(score(f"dense_control_on_{domain}_seed0", dense))
        scores.append(score(f"ours_on_{domain}_seed0", ours))
    piqa = recovery([], scores)[0]["score"]["piqa"]
    assert piqa["runs"] == 2
    assert piqa["mean"] == pytest.approx((0.8 + 0.25) / 2)


def test_a_control_that_was_given_makes_no_base_a_method():
    models = [row("dense_control", 2.0, tokens=0), row("model", 5.0, 1.5, tokens=0)]
    assert recovery([*models, row("finetuned", 2.5)]) == []


def test_held_out_examples_are_counted_beside_the_others():
    counts = dict.fromkeys(
        ("examples", "truncated", "dropped", "rows", "tokens", "response_tokens"), 1000
    )
    tuned = row("ours", 2.0) | {"examples": {"gsm8k": counts}}
    tuned["domains"]["gsm8k"]["examples"] = counts | {"dropped": 7}
    header, lines = examples_table([tuned])
    assert [(line[0], line[header.index("dropped")]) for line in lines] == [
        ("gsm8k", "1,000"),
        ("gsm8k, held out", "7"),
    ]
    assert examples_table([row("ours", 2.0)]) is None


def test_tables_have_a_cell_for_every_column():
    header, lines = recovery_table(recovery(MODELS, [score("dense", 0.5)]))
    assert all(len(line) == len(header) for line in lines)
    assert lines[0][:3] == ["ours", "2", "90.00 %"]
    header, lines = scores_table([score("a", 0.5), score("b", 0.25, "boolq")])
    assert header == ["model", "piqa", "boolq"]
    assert lines[0] == ["a", "50.00 % ± 10.00 % (acc)", "-"]
