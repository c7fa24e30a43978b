"""Tasks: every file format to the prompt that lm-eval's task of that name makes."""

import gzip
import json
import random

import pytest

from sparse_jax.evaluate import tasks
from sparse_jax.evaluate.scoring import Score
from sparse_jax.evaluate.shots import contexts, draw
from sparse_jax.evaluate.tasks import Document, choice, exam, gsm8k
from sparse_jax.types import InputError

SKY = {"text": ["red", "blue"], "label": ["A", "B"]}
QUERY = {"query": "Question: Sky?", "choices": ["red", "blue"], "gold": 1}
RECORDS = {
    # task: (record, prompt, answers, number of the right one)
    ("arc_easy", "foundry"): (QUERY, "Question: Sky?\nAnswer:", ["red", "blue"], 1),
    ("arc_easy", "hub"): (
        {"id": "1", "question": "Sky?", "choices": SKY, "answerKey": "B"},
        "Question: Sky?\nAnswer:",
        ["red", "blue"],
        1,
    ),
    ("arc_challenge", "own"): (
        {
            "question": {
                "stem": "Sky?",
                "choices": [
                    {"text": "red", "label": "1"},
                    {"text": "blue", "label": "2"},
                ],
            },
            "answerKey": "2",
        },
        "Question: Sky?\nAnswer:",
        ["red", "blue"],
        1,
    ),
    ("piqa", "foundry"): (
        {"query": "Question: dresser\n", "choices": ["a", "b"], "gold": 0},
        "Question: dresser\nAnswer:",
        ["a", "b"],
        0,
    ),
    ("piqa", "hub"): (
        {"goal": "dresser", "sol1": "a", "sol2": "b", "label": 1},
        "Question: dresser\nAnswer:",
        ["a", "b"],
        1,
    ),
    ("hellaswag", "foundry"): (
        {"query": "Baking: She", "choices": ["eats.", "runs."], "gold": 0},
        "Baking: She",
        ["eats.", "runs."],
        0,
    ),
    ("hellaswag", "hub"): (
        {
            "activity_label": "Baking",
            "ctx_a": "[header] Flour [title] Sift it.",
            "ctx_b": "the cook",
            "ctx": "Flour the cook",
            "endings": [" eats [substeps] bread.", "runs."],
            "label": "1",
        },
        "Baking: Flour. Sift it. The cook",
        ["eats bread.", "runs."],
        1,
    ),
    ("hellaswag", "short"): (
        {"ctx": "She", "endings": ["eats.", "runs."], "label": 0},
        "She",
        ["eats.", "runs."],
        0,
    ),
    ("boolq", "foundry"): (
        {
            "query": "Passage: P.\nQuestion: is it?",
            "choices": ["no", "yes"],
            "gold": 1,
        },
        "P.\nQuestion: is it?\nAnswer:",
        ["no", "yes"],
        1,
    ),
    ("boolq", "hub"): (
        {"passage": "P.", "question": "is it", "answer": True},
        "P.\nQuestion: is it?\nAnswer:",
        ["no", "yes"],
        1,
    ),
    ("boolq", "super_glue"): (
        {"passage": "P.", "question": "is it", "label": 0, "idx": 3},
        "P.\nQuestion: is it?\nAnswer:",
        ["no", "yes"],
        0,
    ),
    ("openbookqa", "foundry"): (
        {"query": "The sky is", "choices": ["red", "blue"], "gold": 1},
        "The sky is",
        ["red", "blue"],
        1,
    ),
    ("openbookqa", "hub"): (
        {"question_stem": "The sky is", "choices": SKY, "answerKey": "B "},
        "The sky is",
        ["red", "blue"],
        1,
    ),
    ("copa", "hub"): (
        {
            "premise": "The sun rose.",
            "choice1": "It was light.",
            "choice2": "I slept.",
            "question": "effect",
            "label": 0,
        },
        "The sun rose therefore",
        [" it was light.", " i slept."],
        0,
    ),
    ("mmlu", "hub"): (
        {
            "question": " Sky? ",
            "choices": ["1", "2", "3", "4"],
            "answer": 2,
            "subject": "high_school_physics",
        },
        "Sky?\nA. 1\nB. 2\nC. 3\nD. 4\nAnswer:",
        ["A", "B", "C", "D"],
        2,
    ),
    ("mmlu", "letters"): (
        {"question": "Sky?", "choices": ["1", "2", "3", "4"], "answer": "D"},
        "Sky?\nA. 1\nB. 2\nC. 3\nD. 4\nAnswer:",
        ["A", "B", "C", "D"],
        3,
    ),
}


def document(task, record):
    return tasks.get(task).document(record, "x.jsonl:7")


@pytest.mark.parametrize("case", RECORDS, ids="-".join)
def test_multiple_choice(case):
    record, prompt, answers, gold = RECORDS[case]
    found = document(case[0], record)
    assert (found.prompt, list(found.choices), found.gold) == (prompt, answers, gold)
    assert found.target == answers[gold]
    assert found.where == "x.jsonl:7"


def test_winogrande_scores_what_follows_the_blank():
    own = document(
        "winogrande",
        {
            "sentence": "Ann saw Sue so _ waved at her.",
            "option1": "Ann",
            "option2": "Sue",
            "answer": "2",
        },
    )
    foundry = document(
        "winogrande",
        {
            "context_options": ["Ann saw Sue so Ann", "Ann saw Sue so Sue"],
            "continuation": "waved at her.",
            "gold": 1,
        },
    )
    for found in (own, foundry):
        assert found.prompts == ("Ann saw Sue so Ann", "Ann saw Sue so Sue")
        assert (found.target, found.gold, found.choices) == ("waved at her.", 1, ())
        assert found.shown == "Ann saw Sue so Sue"


def test_lambada():
    for record in (
        {"context": "He lit a", "continuation": "candle"},
        {"text": "He lit a candle"},
    ):
        found = document("lambada", record)
        assert (found.prompt, found.target) == ("He lit a", " candle")


def test_truthfulqa():
    answers = {"Yes.": 0, "No.": 1, "Never.": 1}
    own = {"question": "Do pigs fly?", "mc2_targets": answers}
    listed = {"choices": [*answers], "labels": [*answers.values()]}
    hub = {"question": "Do pigs fly?", "mc2_targets": listed}
    for record in (own, hub):
        found = document("truthfulqa_mc2", record)
        assert found.prompt.startswith("Q: What is human life expectancy in the United")
        assert found.prompt.endswith("Barcelona, Spain.\n\nQ: Do pigs fly?\nA:")
        assert (found.choices, found.labels) == (("Yes.", "No.", "Never."), (0, 1, 1))
    scores = [score(-1000 + x) for x in (0.0, 0.5, 1.0)]
    mass = exam.truthful_mass(found, scores)["acc"]
    assert mass == pytest.approx((1.6487 + 2.7183) / (1 + 1.6487 + 2.7183), rel=1e-4)


def score(logprob, greedy=False):
    return Score(logprob=logprob, is_greedy=greedy, tokens=1)


def test_accuracy_per_character():
    found = document("piqa", {"goal": "g", "sol1": "ab", "sol2": "abcdef", "label": 1})
    metrics = choice.accuracies(found, [score(-3.0), score(-6.0)])
    assert metrics == {"acc": 0.0, "acc_norm": 1.0}
    empty = document("piqa", {"goal": "g", "sol1": "", "sol2": "b", "label": 1})
    metrics = choice.accuracies(empty, [score(-0.0), score(-9.0)])
    assert metrics == {"acc": 0.0, "acc_norm": 1.0}
    # Equal log-likelihoods: the first.
    assert choice.accuracy(found, [score(-3.0), score(-3.0)]) == {"acc": 0.0}


@pytest.mark.parametrize(
    ("answer", "strict", "flexible"),
    [
        ("9 * 2 = 18\n#### 18", 1, 1),
        ("So she makes $1,018 in all.", 0, 0),
        ("So she makes $18.", 0, 1),
        ("#### 18.", 1, 1),
        ("#### 18\nQuestion 19", 1, 0),
        ("####18", 0, 1),
        ("none", 0, 0),
        ("#### -18", 0, 0),
        ("", 0, 0),
    ],
)
def test_numbers_of_gsm8k(answer, strict, flexible):
    found = document("gsm8k", {"question": "How much?", "answer": "2 * 9\n#### 18"})
    assert found.prompt == "Question: How much?\nAnswer:"
    assert gsm8k.matches(found, answer) == {
        "strict_match": strict,
        "flexible_extract": flexible,
    }


def test_gsm8k_of_llm_foundry():
    record = {"context": "How much?", "chain_of_thought": "2 * 9", "answer": "1,018"}
    found = document("gsm8k", record)
    assert found.target == "2 * 9\n#### 1,018"
    assert gsm8k.matches(found, "$1018")["flexible_extract"] == 1


def test_prompts_of_programs():
    record = {"text": "Add.", "code": "def add(a, b): ...", "test_list": ["t1", "t2"]}
    for field in ("text", "prompt"):
        renamed = {field: "Add."} | {k: v for k, v in record.items() if k != "text"}
        found = document("mbpp", renamed)
        assert found.prompt == (
            "You are an expert Python programmer, and here is your task: Add. "
            "Your code should pass these tests:\n\nt1\nt2\n[BEGIN]\n"
        )
        assert found.target == "def add(a, b): ...\n[DONE]"
    task = tasks.get("mbpp")
    whole = [document("mbpp", record | {"task_id": n}) for n in (1, 2, 3, 4, 11, 511)]
    assert [d.record["task_id"] for d in task.select(whole)] == [11]
    assert [d.record["task_id"] for d in task.usual_shots(whole)] == [2, 3, 4]
    assert task.usual_shots(whole[:3]) == []
    assert task.select(whole[:2]) == whole[:2]


@pytest.mark.parametrize(
    ("task", "record", "message"),
    [
        (
            "piqa",
            {"goal": "g", "sol1": "a", "sol2": "b"},
            "x.jsonl:7: field 'label' is",
        ),
        (
            "piqa",
            {"goal": 3, "sol1": "a", "sol2": "b", "label": 1},
            "'goal' must be str",
        ),
        ("piqa", QUERY | {"gold": 2}, "'gold' must be the number of one of 2 answers"),
        ("piqa", QUERY | {"gold": -1}, "0 to 1, found -1"),
        ("piqa", QUERY | {"choices": ["a"]}, "list of at least 2 texts"),
        ("piqa", QUERY | {"choices": "red"}, "'choices' must be a list"),
        (
            "arc_easy",
            {"question": "Q", "choices": SKY, "answerKey": "E"},
            r"'answerKey' must be one of \['A', 'B'\], found 'E'",
        ),
        (
            "arc_easy",
            {"question": "Q", "choices": {"text": ["a", "b"]}, "answerKey": "E"},
            "'choices.label' must be a list",
        ),
        ("arc_easy", {"question": 1, "answerKey": "A"}, "'question' must be text"),
        (
            "hellaswag",
            {"ctx": "c", "endings": ["a", "b"], "label": ""},
            "name a file that has the answers",
        ),
        (
            "winogrande",
            {"sentence": "s", "option1": "a", "option2": "b", "answer": "1"},
            "'sentence' must hold a blank '_'",
        ),
        ("lambada", {"text": "word"}, "'text' must be words"),
        (
            "lambada",
            {"text": "a b\ud800"},
            "'text': expected Unicode text",
        ),
        (
            "piqa",
            QUERY | {"choices": ["a", "\ud800"]},
            "expected Unicode text",
        ),
        (
            "truthfulqa_mc2",
            {"question": "q", "mc2_targets": {"choices": ["a", "b"], "labels": 5}},
            "'mc2_targets' must hold 'choices' and 'labels'",
        ),
        (
            "truthfulqa_mc2",
            {"question": "q", "mc2_targets": {"choices": ["a", "b"], "labels": [1]}},
            "'mc2_targets.labels' must hold a 0 or 1 for each of 2",
        ),
        (
            "humaneval",
            {"prompt": "p", "test": 5, "entry_point": "f"},
            "'test' must be str",
        ),
        ("gsm8k", {"question": "q", "answer": "18"}, "must end with '#### '"),
        (
            "truthfulqa_mc2",
            {"question": "q", "mc2_targets": {"a": 1, "b": 1}},
            "'mc2_targets.labels' must hold a 0 or 1",
        ),
        (
            "mmlu",
            {"question": "q", "choices": ["1", "2", "3", "4"], "answer": "E"},
            "'answer' must be the number of one of 4 answers",
        ),
    ],
)
def test_bad_records(task, record, message):
    with pytest.raises(InputError, match=message) as raised:
        document(task, record)
    assert str(raised.value).startswith("x.jsonl:7: ")


def test_unknown_tasks():
    with pytest.raises(InputError, match="'arc_esy'; did you mean arc_easy"):
        tasks.get("arc_esy")
    with pytest.raises(InputError, match=r"'zzz'; known: \['arc_easy'"):
        tasks.get("zzz")


def write(path, *records):
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps(record) + "\n" for record in records).encode()
    path.write_bytes(gzip.compress(lines) if path.suffix == ".gz" else lines)


def test_files_are_found_by_usual_names(tmp_path):
    with pytest.raises(
        InputError, match=r"holds no file of task piqa: looked for piqa"
    ):
        tasks.read("piqa", tmp_path)
    with pytest.raises(InputError, match="there is no such folder or file"):
        tasks.read("piqa", tmp_path / "none")
    write(tmp_path / "piqa" / "validation.jsonl.gz", QUERY)
    write(tmp_path / "piqa" / "train.jsonl", QUERY, QUERY)
    write(tmp_path / "piqa" / "README.md", QUERY)
    [found] = tasks.read("piqa", tmp_path)
    assert found.where.endswith("piqa/validation.jsonl.gz:1")
    assert len(tasks.read_shots("piqa", tmp_path)) == 2
    assert len(tasks.read("piqa", tmp_path / "piqa" / "train.jsonl")) == 2
    assert tasks.read_shots("piqa", tmp_path / "piqa" / "train.jsonl") == []
    write(tmp_path / "piqa.jsonl", QUERY, QUERY, QUERY)  # comes before
    assert len(tasks.read("piqa", tmp_path)) == 3


def test_files_of_like_names_are_not_mixed(tmp_path):
    record = {"question": "q", "answer": "#### 1"}
    write(tmp_path / "gsm8k" / "test.jsonl", record)
    write(tmp_path / "gsm8k" / "test_socratic.jsonl", record, record)
    assert len(tasks.read("gsm8k", tmp_path)) == 1  # the name itself
    for part in range(3):
        write(tmp_path / "gsm8k" / f"train-0000{part}-of-00003.jsonl", record)
    assert len(tasks.read_shots("gsm8k", tmp_path)) == 3  # parts of one
    write(tmp_path / "piqa" / "valid_a.jsonl", QUERY)
    write(tmp_path / "piqa" / "valid_b.jsonl", QUERY)
    with pytest.raises(InputError, match=r"holds several files .* valid_a\.jsonl, val"):
        tasks.read("piqa", tmp_path)


def test_subjects_of_mmlu_come_from_names_of_files(tmp_path):
    record = {"question": "Sky?", "choices": ["1", "2", "3", "4"], "answer": "D"}
    write(tmp_path / "mmlu" / "anatomy_test.jsonl", record)
    write(tmp_path / "mmlu" / "us_history_test.jsonl", record, record)
    write(tmp_path / "mmlu" / "anatomy_dev.jsonl", record)
    found = tasks.read("mmlu", tmp_path)
    assert [d.group for d in found] == ["anatomy", "us_history", "us_history"]
    assert [d.group for d in tasks.read_shots("mmlu", tmp_path)] == ["anatomy"]
    [text] = contexts(tasks.get("mmlu"), found[1], [])
    assert text.startswith(
        "The following are multiple choice questions (with answers) about us history."
        "\n\nSky?\nA. 1"
    )


def test_requests_of_a_document_are_put_together(tmp_path):
    lines = [
        {
            "request_type": "loglikelihood",
            "doc": {"gold": 1},
            "request": {"context": context, "continuation": f" {answer}"},
            "idx": number,
            "doc_id": doc_id,
            "label": 1,
        }
        for doc_id, context in (
            (0, "Shots.\n\nBaking: She"),
            (1, "Shots.\n\nSinging: He"),
            (1_000_000, "Answer:"),
        )
        for number, answer in enumerate(("eats.", "runs."))
    ]
    write(tmp_path / "hellaswag.jsonl", *lines)
    first, second = tasks.read("hellaswag", tmp_path)
    assert first.prompt == "Shots.\n\nBaking: She"
    assert (first.choices, first.gold) == (("eats.", "runs."), 1)
    assert first.asked
    assert second.where.endswith("hellaswag.jsonl:3")


def pool(count):
    return [
        Document(where=f"f:{n}", prompt=f"q{n}", target=f"a{n}", record={"n": n})
        for n in range(count)
    ]


def test_examples_are_drawn_as_by_lm_eval():
    documents, training = (
        pool(5),
        [Document(where=f"train:{n}", record={"train": n}) for n in range(20)],
    )
    generator = random.Random(1234)
    expected = [generator.sample(training, 3) for _ in documents]
    assert draw(documents, training, 3, seed=1234) == expected
    generator = random.Random(1234)
    expected = [generator.sample(training, 4)[:3] for _ in documents]
    assert draw(documents, training, 3, seed=1234, spare=True) == expected
    # Among themselves: one more is drawn, and the document itself left out.
    generator, expected = random.Random(7), []
    for document in documents:
        drawn = generator.sample(documents, 4)
        expected.append([d for d in drawn if d != document][:3])
    assert draw(documents, documents, 3, seed=7) == expected
    # The first documents get the same examples when no more are asked.
    assert draw(documents[:2], documents, 3, seed=7) == expected[:2]
    assert draw(documents, documents, 0, seed=7) == [[]] * 5


def test_a_document_is_never_its_own_example():
    documents = pool(6)
    twice = [*documents, *pool(6)]
    for number, shots in enumerate(draw(documents, twice, 4, seed=0)):
        assert len(shots) == 4
        assert all(shot.record != documents[number].record for shot in shots)
    with pytest.raises(InputError, match="6 examples are asked for, found 0"):
        draw(documents, documents, 6, seed=0)


def test_first_examples_of_the_own_group():
    grouped = [
        Document(where=f"f:{n}", group="ab"[n % 2], record={"n": n}) for n in range(8)
    ]
    [shots] = draw(grouped[2:3], grouped, 2, seed=0, first=True)
    assert [shot.record["n"] for shot in shots] == [0, 4]
    with pytest.raises(InputError, match=r"5 examples are asked .* found 3 of group a"):
        draw(grouped[2:3], grouped, 5, seed=0, first=True)


def test_prompts_with_examples():
    task, shots = tasks.get("piqa"), pool(2)
    asked = document("piqa", QUERY)
    assert contexts(task, asked, shots) == ["q0 a0\n\nq1 a1\n\nQuestion: Sky?\nAnswer:"]
    partial = document(
        "winogrande",
        {"context_options": ["So A", "So B"], "continuation": "ran.", "gold": 1},
    )
    assert contexts(tasks.get("winogrande"), partial, [partial]) == [
        "So B ran.\n\nSo A",
        "So B ran.\n\nSo B",
    ]


def test_gold_answers_of_gsm8k_all_count(shared_data):
    for documents in (
        tasks.read("gsm8k", shared_data),
        tasks.read_shots("gsm8k", shared_data),
        tasks.read("gsm8k", shared_data / "gsm8k" / "foundry_gsm8k.jsonl"),
    ):
        assert len(documents) in (1319, 7473)
        for found in documents:
            assert gsm8k.matches(found, found.target) == {
                "strict_match": 1.0,
                "flexible_extract": 1.0,
            }


@pytest.mark.parametrize(
    ("task", "documents"),
    [
        ("arc_easy", 2376),
        ("arc_challenge", 1172),
        ("piqa", 1838),
        ("winogrande", 1267),
        ("boolq", 3270),
        ("openbookqa", 500),
        ("lambada", 5153),
        ("hellaswag", 1000),
        ("humaneval", 164),
        ("mbpp", 500),
    ],
)
def test_real_files_are_read(shared_data, task, documents):
    found = tasks.read(task, shared_data)
    assert len(found) == documents
    golds = {d.gold for d in found}
    assert golds == {None} or len(golds) > 1
