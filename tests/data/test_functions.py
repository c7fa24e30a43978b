"""Fine-tuning examples of the embedded corpus: where they come from, their files."""

import ast
import json

import pytest

from sparse_jax.data import load_corpus
from sparse_jax.data.functions import (
    CHOICES,
    choice_records,
    function_records,
    write_functions,
)
from sparse_jax.evaluate import tasks


@pytest.fixture(scope="module")
def records():
    return function_records()


def test_functions_are_those_of_their_split(records):
    assert len(records["train"]) > 1000 and len(records["heldout"]) > 50
    outputs = {split: {r["output"] for r in found} for split, found in records.items()}
    assert not outputs["train"] & outputs["heldout"]
    heldout = "\n".join(load_corpus().documents["code"]["heldout"])
    for record in records["heldout"][:50]:
        first = record["output"].split("\n")[0]
        assert first in heldout
        ast.parse(record["instruction"].split("\n")[0] + "\n    pass")


def test_bodies_are_dedented_source(records):
    for record in records["train"][:200]:
        lines = record["output"].split("\n")
        assert lines[0] == lines[0].strip() and lines[-1].strip()


def test_choices_hold_the_answer_once(records):
    records = records["heldout"]
    rows = choice_records(records)
    answers = {r["instruction"]: r["output"] for r in records}
    assert len(rows) == len(records)
    for row in rows:
        assert row["choices"][row["gold"]] == answers[row["query"]]
        assert len(set(row["choices"])) == len(row["choices"]) == CHOICES
    golds = [row["gold"] for row in rows]
    assert all(0.15 < golds.count(g) / len(golds) < 0.35 for g in range(CHOICES))
    assert rows == choice_records(records)


def test_few_records_have_fewer_choices():
    records = [{"instruction": f"f{i}", "output": "x" * (30 + i)} for i in range(2)]
    rows = choice_records(records)
    assert [len(row["choices"]) for row in rows] == [2, 2]


def test_files_are_written_once_and_read_by_the_task(tmp_path):
    folder = write_functions(tmp_path)
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*.jsonl")}
    assert len(before) == 3
    assert write_functions(tmp_path) == folder
    assert {p: p.stat().st_mtime_ns for p in folder.rglob("*.jsonl")} == before
    documents = tasks.read("functions", folder)
    lines = (folder / "functions" / "choice.jsonl").read_text().splitlines()
    assert len(documents) == len(lines)
    assert documents[0].gold == json.loads(lines[0])["gold"]
