"""The harness: what a model is asked, and what is made of its answers."""

import json
import math

import jax
import pytest

from sparse_jax import data, infer, io, models
from sparse_jax.evaluate import (
    GenerateConfig,
    Generated,
    HarnessConfig,
    LanguageModel,
    Score,
    code_tests,
    harness,
    results_table,
    run_tasks,
    tasks,
)
from sparse_jax.evaluate.tasks import code, summary
from sparse_jax.models import LlamaConfig
from sparse_jax.types import InputError

TEXT = "The quick brown fox jumps over the lazy dog, and the dog barks. "
CONFIG = LlamaConfig(
    vocab_size=300, d_model=16, d_ff=24, n_layers=1, n_heads=2, max_seq_len=64
)
TOKENIZER = data.train_bpe([TEXT * 9], vocab_size=300)


class Oracle(LanguageModel):
    """Prefers and writes what it is told to, and keeps what it was asked."""

    tokenizer, max_length, source = TOKENIZER, 64, "oracle"

    def __init__(self, likes=lambda context, answer: 0.0, writes=lambda prompt, n: ""):
        self.likes, self.writes = likes, writes
        self.asked, self.config = [], None

    def loglikelihood(self, requests):
        self.asked += requests
        return [
            Score(
                logprob=float(self.likes(*request)),
                is_greedy=self.likes(*request) == 0,
                tokens=1,
                truncated="long" in request[0],
            )
            for request in requests
        ]

    def generate(self, prompts, config=GenerateConfig()):
        self.asked, self.config = list(prompts), config
        return [
            Generated(text=self.writes(prompt, n), tokens=1, truncated="long" in prompt)
            for n, prompt in enumerate(prompts)
        ]


def write(path, *records):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def run(model, name, path, **options):
    [result] = run_tasks(model, [name], path, HarnessConfig(**options))
    return result


def piqa(n, **changes):
    return {"goal": f"g{n}", "sol1": "a", "sol2": "bb", "label": n % 2} | changes


def test_multiple_choice(tmp_path):
    path = write(
        tmp_path / "piqa.jsonl", *map(piqa, range(3)), piqa(3, goal="too long")
    )
    model = Oracle(likes=lambda context, answer: -len(answer))
    result = run(model, "piqa", path)
    assert model.asked[:2] == [
        ("Question: g0\nAnswer:", " a"),
        ("Question: g0\nAnswer:", " bb"),
    ]
    # "a" is always likelier: right in every other document.
    assert result.metrics["acc"].value == 0.5
    assert result.metrics["acc"].stderr == pytest.approx((1 / 3 / 4) ** 0.5)
    # Per character " bb" is: -3 / 2 > -2 / 1.
    assert [s["metrics"]["acc_norm"] for s in result.samples] == [0, 1, 0, 1]
    assert (result.documents, result.truncated, result.shots) == (4, 1, 0)
    assert result.files == (str(path),)
    assert result.samples[3]["where"] == f"{path}:4"
    numbers = json.loads(json.dumps(result.numbers()))
    assert numbers["metrics"]["acc"]["value"] == 0.5


def test_partial_scoring_compares_contexts(tmp_path):
    record = {"context_options": ["So A", "So B"], "continuation": "ran.", "gold": 1}
    path = write(tmp_path / "w.jsonl", record)
    model = Oracle(likes=lambda context, answer: float(context.endswith("B")))
    result = run(model, "winogrande", path)
    assert model.asked == [("So A", " ran."), ("So B", " ran.")]
    assert result.metrics["acc"].value == 1.0
    assert result.metrics["acc"].stderr is None
    assert "-" in results_table([result]).splitlines()[1]


def test_last_words(tmp_path):
    path = write(tmp_path / "l.jsonl", {"text": "a b c"}, {"text": "a b d"})
    model = Oracle(likes=lambda context, answer: 0.0 if answer == " c" else -2.0)
    result = run(model, "lambada", path)
    assert model.asked == [("a b", " c"), ("a b", " d")]
    assert result.metrics["acc"].value == 0.5
    assert result.metrics["perplexity"].value == pytest.approx(2.718281828)
    result = run(Oracle(likes=lambda context, answer: -1e4), "lambada", path)
    assert result.metrics["perplexity"].value == math.inf
    assert result.numbers()["metrics"]["perplexity"]["value"] is None
    json.dumps(result.numbers(), allow_nan=False)


def test_examples_stand_before_a_question(tmp_path):
    write(tmp_path / "piqa.jsonl", *map(piqa, range(5)))
    model = Oracle()
    result = run(model, "piqa", tmp_path, shots=2, limit=2)
    assert (result.shots, result.shots_from, result.documents) == (
        2,
        "the same file",
        2,
    )
    first, own = model.asked[0][0], "Question: g0\nAnswer:"
    assert first.endswith(f"\n\n{own}")
    assert first.count("Question:") == 3 and first.count(own) == 1
    assert "Answer: a\n\n" in first or "Answer: bb\n\n" in first
    again = Oracle()
    run(again, "piqa", tmp_path, shots=2, limit=2)
    assert again.asked == model.asked
    write(tmp_path / "piqa" / "train.jsonl", *map(piqa, range(10, 20)))
    result = run(model, "piqa", tmp_path, shots=2)
    assert result.shots_from == str(tmp_path / "piqa" / "train.jsonl")
    assert "g1" in model.asked[-1][0].split("\n\n")[0]


def test_subjects(tmp_path):
    def question(subject, answer):
        choices = ["1", "2", "3", "4"]
        return {
            "question": "q",
            "choices": choices,
            "answer": answer,
            "subject": subject,
        }

    path = write(
        tmp_path / "mmlu.jsonl",
        *[question("law", 0)] * 3,
        question("law", 1),
        *[question("art", 1)] * 2,
    )
    result = run(Oracle(), "mmlu", path)  # always A
    assert result.metrics["acc"].value == 0.5
    assert result.metrics["acc_of_groups"].value == 0.375
    assert result.groups["law"]["acc"].value == 0.75
    assert result.groups["art"]["acc"].stderr == 0


def gsm8k(n):
    return {"question": f"q{n}?", "answer": f"so\n#### {n}"}


def test_written_answers(tmp_path):
    write(tmp_path / "gsm8k" / "test.jsonl", *map(gsm8k, range(4)))
    write(tmp_path / "gsm8k" / "train.jsonl", *map(gsm8k, range(10, 20)))
    answers = ["#### 0", "it is 1.", "#### 9", "none"]
    model = Oracle(writes=lambda prompt, n: answers[n])
    result = run(model, "gsm8k", tmp_path)
    assert model.asked[0].endswith("\n\nQuestion: q0?\nAnswer:")
    assert model.asked[0].count("Question:") == 6  # five examples, as usual
    assert model.config.stop == ("Question:", "</s>", "<|im_end|>")
    assert model.config.max_tokens == 32  # half of what the model reads, below 256
    assert result.settings["max_tokens"] == 32
    assert result.metrics["strict_match"].value == 0.25
    assert result.metrics["flexible_extract"].value == 0.5
    assert result.samples[1]["answers"] == ["it is 1."]
    assert result.samples[3]["notes"] == ["no number"]
    run(model, "gsm8k", tmp_path, shots=0, max_tokens=5)
    assert model.asked[1] == "Question: q1?\nAnswer:"
    assert model.config.max_tokens == 5


def test_several_samples_of_programs(tmp_path, monkeypatch):
    record = {"prompt": "def f():\n", "test": "def check(f): pass", "entry_point": "f"}
    path = write(tmp_path / "h.jsonl", record, record)
    seen = []

    def check(programs, *, unsafe):
        seen.append((programs, unsafe))
        return [
            code_tests.Outcome(
                passed="good" in program, reason=program[9:15], seconds=0.0
            )
            for program in programs
        ]

    monkeypatch.setattr(code_tests, "check_programs", check)
    monkeypatch.setattr(harness, "require_layers", lambda *, unsafe: ())
    model = Oracle(writes=lambda prompt, n: "    good" if n in (0, 10) else "    bad")
    result = run(
        model, "humaneval", path, num_samples=10, temperature=0.2, unsafe_code=True
    )
    [(programs, unsafe)] = seen
    assert len(programs) == 20 and unsafe
    assert programs[0] == "def f():\n    good\ndef check(f): pass\ncheck(f)"
    assert result.metrics["pass@1"].value == pytest.approx(0.1)
    assert result.metrics["pass@10"].value == 1.0
    assert (model.config.temperature, result.settings["num_samples"]) == (0.2, 10)
    assert len(result.samples[0]["answers"]) == 10
    assert result.samples[0]["notes"][:2] == ["    go", "    ba"]


def test_a_sandbox_that_is_incomplete_is_refused_before_anything(tmp_path, monkeypatch):
    record = {"prompt": "def f():\n", "test": "def check(f): pass", "entry_point": "f"}
    path = write(tmp_path / "h.jsonl", record)

    def refuse(*, unsafe):
        raise InputError("a layer is missing")

    monkeypatch.setattr(harness, "require_layers", refuse)
    model = Oracle()
    with pytest.raises(InputError, match="a layer is missing"):
        run(model, "humaneval", path)
    assert model.asked == []


def test_summaries(tmp_path):
    pytest.importorskip("rouge_score", reason="needs the extra 'evaluate'")
    record = {"article": "A dog barked.", "highlights": "Dog barked\nloudly."}
    path = write(tmp_path / "c.jsonl", record)
    model = Oracle(writes=lambda prompt, n: " The dog barks")
    result = run(model, "cnn_dailymail", path)
    [prompt] = model.asked
    assert prompt == "Summarize the following article:\n\nA dog barked.\n\nSummary:"
    # Of 3 and 3 stems, 2 are shared: dog, bark.
    assert result.metrics["rouge1"].value == pytest.approx(2 / 3)
    assert result.metrics["rouge2"].value == pytest.approx(1 / 2)
    assert result.metrics["rougeL"].value == pytest.approx(2 / 3)


def test_rouge_that_is_not_installed(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "rouge_score", None)
    summary._scorer.cache_clear()
    path = write(tmp_path / "c.jsonl", {"article": "a", "highlights": "b"})
    with pytest.raises(InputError, match=r"pip install 'sparse_jax\[evaluate\]'"):
        run(Oracle(), "cnn_dailymail", path)
    summary._scorer.cache_clear()


def test_chat(tmp_path):
    write(tmp_path / "piqa.jsonl", *map(piqa, range(5)))
    model = Oracle()
    run(model, "piqa", tmp_path, shots=1, chat=True, template="llama2", limit=1)
    (context, answer), *_ = model.asked
    assert answer == "a"  # the template ends where the answer begins
    assert context.count("[INST]") == 2
    assert context.endswith("[INST] Question: g0\nAnswer: [/INST]")
    template = tmp_path / "bad.jinja"
    template.write_text("{{ raise_exception('no') }}")
    with pytest.raises(
        InputError, match=r"piqa\.jsonl:1: .*bad\.jinja: no; name anoth"
    ):
        run(model, "piqa", tmp_path, chat=True, template=str(template))


def test_bad_input_costs_no_work(tmp_path):
    model = Oracle()
    good = write(tmp_path / "piqa.jsonl", piqa(0))
    write(
        tmp_path / "boolq.jsonl", {"passage": "p", "question": "q", "answer": True}, {}
    )
    for names, message in (
        (["piqa", "boolq"], r"boolq\.jsonl:2: field '.*' is missing, expected the fie"),
        (["piqa", "lambda"], "did you mean lambada"),
        (["piqa", "copa"], "holds no file of task copa"),
    ):
        with pytest.raises(InputError, match=message):
            list(run_tasks(model, names, tmp_path))
        assert model.asked == []
    write(tmp_path / "gsm8k.jsonl", *map(gsm8k, range(6)))
    with pytest.raises(InputError, match="less than the 64 tokens that the model"):
        list(
            run_tasks(model, ["piqa", "gsm8k"], tmp_path, HarnessConfig(max_tokens=64))
        )
    assert model.asked == []
    with pytest.raises(InputError, match=r"no task is named; known: \['arc_easy'"):
        list(run_tasks(model, [], tmp_path))
    with pytest.raises(InputError, match="2 examples are asked for, found 0"):
        run(model, "piqa", good, shots=2)
    asked = {"asked_query": "q", "choices": ["a", "b"], "gold": 0}
    path = write(tmp_path / "h.jsonl", asked)
    with pytest.raises(InputError, match="the examples stand in the file already"):
        run(model, "hellaswag", path, shots=1)
    assert run(model, "hellaswag", path).shots_from == "in the file"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shots": -1}, "shots must be >= 0, found -1"),
        ({"limit": 0}, "limit must be >= 1"),
        ({"num_samples": 0}, "num_samples must be >= 1"),
        ({"max_tokens": 0}, "max_tokens must be >= 1"),
        ({"temperature": -1.0}, "temperature must be >= 0"),
        ({"top_p": 0.0}, r"top_p must be in \(0, 1\]"),
        ({"num_samples": 2}, "would all be the same at temperature 0"),
    ],
)
def test_bad_settings(options, message):
    with pytest.raises(InputError, match=message):
        HarnessConfig(**options)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A directory with a model, and the same packed."""
    path = tmp_path_factory.mktemp("harness")
    params = jax.jit(models.init, static_argnums=1)(jax.random.key(0), CONFIG)
    io.save(path / "model", params, CONFIG, tokenizer_files=TOKENIZER.files)
    options = infer.PackConfig(dtype="float32")
    reader = io.open_blocks(path / "model")
    infer.pack_checkpoint(reader, path / "model.packed", options)
    return path


def test_a_packed_model_answers_as_its_directory_does(folder, tmp_path):
    write(tmp_path / "piqa.jsonl", *map(piqa, range(4)))
    write(tmp_path / "gsm8k.jsonl", *map(gsm8k, range(3)))
    config = HarnessConfig(shots=1, max_tokens=8)
    found = []
    for name in ("model", "model.packed"):
        model = LanguageModel(folder / name)
        found.append(list(run_tasks(model, ["piqa", "gsm8k"], tmp_path, config)))
    for one, other in zip(*found, strict=True):
        assert one.metrics == other.metrics
        for a, b in zip(one.samples, other.samples, strict=True):
            assert a.get("answers") == b.get("answers")
            assert a.get("logprobs") == pytest.approx(b.get("logprobs"), abs=1e-5)


def test_writing(folder):
    model = LanguageModel(folder / "model.packed", max_length=32, batch_size=2)
    prompts = ["The", TEXT * 3, ""]
    config = GenerateConfig(max_tokens=8)
    found = model.generate(prompts, config)
    assert [one.truncated for one in found] == [False, True, False]
    assert all(0 < one.tokens <= 8 for one in found)
    # The end of a long prompt is what counts.
    ids = model.encoder.encode([TEXT * 3])[0][-24:]
    [same] = model._generator._engine.generate([ids], max_tokens=8)
    assert same.text == found[1].text
    assert model.generate([], config) == []
    with pytest.raises(
        InputError, match="less than the 32 tokens that the model reads, found 32"
    ):
        model.generate(["The"], GenerateConfig(max_tokens=32))


def test_special_tokens_are_no_text(folder, monkeypatch):
    model = LanguageModel(folder / "model.packed")
    eos = TOKENIZER.eos_id
    assert model.encoder.special_ids == {eos}
    written = infer.Completion(
        text=f"a{TOKENIZER.piece(eos)} b", ids=(5, eos, 6), prompt_tokens=1, finish=""
    )
    monkeypatch.setattr(
        model._generator._engine, "generate", lambda *_, **__: [written]
    )
    assert model.generate(["x"], GenerateConfig(max_tokens=4))[0].text == "a b"


def test_models_that_cannot_be_asked(folder, tmp_path):
    with pytest.raises(InputError, match="tiny is a size without weights"):
        LanguageModel("tiny")
    params = jax.jit(models.init, static_argnums=1)(jax.random.key(0), CONFIG)
    io.save(tmp_path / "bare", params, CONFIG)
    with pytest.raises(InputError, match="the model has no tokenizer"):
        LanguageModel(tmp_path / "bare")


def test_canonical_programs_pass_their_tests(shared_data):
    """A few of them, through the sandbox itself."""
    try:
        code_tests.require_layers()
    except InputError as error:
        pytest.skip(str(error))
    for name, solution in (("humaneval", "canonical_solution"), ("mbpp", "code")):
        documents = tasks.read(name, shared_data)[:3]
        answers = [[d.record[solution], "    nonsense("] for d in documents]
        judge = code.TASKS[name].judge_texts
        for judgement in judge(documents, answers, tasks.Judging()):
            assert judgement.metrics == {"pass@1": 0.5}
            assert judgement.notes[0] == "passed" != judgement.notes[1]
