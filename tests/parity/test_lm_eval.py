"""The harness beside lm-eval itself, wherever that is installed.

Prompts, answers and metrics are compared with those of lm-eval's own task files, on
records in the data sets' public formats.
"""

import json
import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest

from sparse_jax import data, io, models
from sparse_jax.data import chat
from sparse_jax.evaluate import tasks
from sparse_jax.evaluate.lm_eval import LOCAL_TASKS, documents, register
from sparse_jax.evaluate.scoring import Score
from sparse_jax.evaluate.shots import contexts, draw
from sparse_jax.models import LlamaConfig
from sparse_jax.types import InputError

os.environ.setdefault("HF_HUB_OFFLINE", "1")

pytest.importorskip("lm_eval", reason="pip install 'sparse_jax[lm_eval]'")

pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("ignore")]


def arc(question, answers, labels, key):
    choices = {"text": answers, "label": labels}
    return {"question": question, "choices": choices, "answerKey": key}


FOUR = ["a rock", "the naïve café", "Water, mostly.", "of light"]
PUBLIC = {
    "arc_easy": (
        "arc/arc_easy.yaml",
        [
            arc("What flows?", FOUR, ["A", "B", "C", "D"], "C"),
            arc("What is  it? ", FOUR[:3], ["1", "2", "3"], "1"),
            arc("3", FOUR, ["A", "B", "C", "D"], "D"),
        ],
    ),
    "arc_challenge": (
        "arc/arc_challenge.yaml",
        [arc("Why?", FOUR, ["A", "B", "C", "D"], "B")],
    ),
    "openbookqa": (
        "openbookqa/openbookqa.yaml",
        [
            {
                "question_stem": "The sun is",
                "choices": {"text": FOUR, "label": ["A", "B", "C", "D"]},
                "answerKey": "D",
            }
        ],
    ),
    "piqa": (
        "piqa/piqa.yaml",
        [
            {"goal": "Boil an egg.", "sol1": "Wait", "sol2": "Use water", "label": 1},
            {"goal": "dresser", "sol1": "a b", "sol2": "Übung", "label": 0},
        ],
    ),
    "hellaswag": (
        "hellaswag/hellaswag.yaml",
        [
            {
                "activity_label": "Baking",
                "ctx_a": "A chef [header] shows.",
                "ctx_b": "she [title] then",
                "endings": ["bakes [step] it.", "runs.", "sings  loudly.", "sleeps."],
                "label": "0",
            }
        ],
    ),
    "winogrande": (
        "winogrande/default.yaml",
        [
            {
                "sentence": "Ann beat Bea so _ was glad.",
                "option1": "Ann",
                "option2": "Bea",
                "answer": "1",
            },
            {
                "sentence": "The cup broke the plate as the _ was hard .",
                "option1": "cup",
                "option2": "plate",
                "answer": "2",
            },
        ],
    ),
    "boolq": (
        "super_glue/boolq/default.yaml",
        [
            {"passage": "Cats purr.", "question": "do cats purr", "label": 1},
            {"passage": "No.", "question": "is it so", "label": 0},
        ],
    ),
    "copa": (
        "super_glue/copa/default.yaml",
        [
            {
                "premise": "The man broke his toe.",
                "choice1": "He fell.",
                "choice2": "A hammer hit it.",
                "question": "cause",
                "label": 1,
            }
        ],
    ),
    "truthfulqa_mc2": (
        "truthfulqa/truthfulqa_mc2.yaml",
        [
            {
                "question": "Are cats green?",
                "mc1_targets": {"choices": ["No.", "Yes."], "labels": [1, 0]},
                "mc2_targets": {
                    "choices": ["No.", "Never.", "Yes."],
                    "labels": [1, 1, 0],
                },
            }
        ],
    ),
    "mmlu": (
        "mmlu/default/mmlu_anatomy.yaml",
        [
            {
                "question": " Which bone? ",
                "subject": "anatomy",
                "choices": ["a", "b", "c", "d"],
                "answer": 2,
            }
        ],
    ),
    "lambada": (
        "lambada/lambada_openai.yaml",
        [
            {"text": "She saw the door\n and then the  window"},
            {"text": "It was “his” signs."},
        ],
    ),
    "gsm8k": (
        "gsm8k/gsm8k.yaml",
        [
            {"question": "2 + 2?", "answer": "2 + 2 = <<2+2=4>>4\n#### 4"},
            {"question": "1000 x 2?", "answer": "It is\n#### 2,000"},
        ],
    ),
}
"""Task -> lm-eval's file, and records in the format that it reads."""


def theirs(path, records, examples=None, **changes):
    """lm-eval's task of a file, with these documents, and examples in other splits."""
    import datasets
    from lm_eval.api.task import ConfigurableTask
    from lm_eval.tasks import TaskManager
    from lm_eval.tasks._yaml_loader import load_yaml

    folder = pathlib.Path(sys.modules[TaskManager.__module__].__file__).parent
    config = load_yaml(folder / path)
    for name in ("tag", "group"):
        config.pop(name, None)
    asked = dict.fromkeys(("validation", "test"), records)
    others = dict.fromkeys(("train", "dev"), examples or records)
    splits = {
        split: datasets.Dataset.from_list(held)
        for split, held in (asked | others).items()
    }
    config |= {"custom_dataset": lambda **_: splits, **changes}
    return ConfigurableTask(config=config)


def requests_of(task, document):
    """(context, answer or options) of each request that lm-eval makes."""
    context = task.fewshot_context(document, 0)
    found = task.construct_requests(document, context)
    return [one.arguments for one in (found if isinstance(found, list) else [found])]


def our_requests(task, document):
    """The same of the harness."""
    texts = contexts(task, document, ())
    if task.kind == "write":
        return texts
    delimiter = task.delimiter
    if task.scored_delimiter is not None:
        delimiter = task.scored_delimiter
    answers = document.choices or (document.target,)
    return [(text, f"{delimiter}{answer}") for text in texts for answer in answers]


def write(folder, name, records):
    path = folder / f"{name}.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


@pytest.mark.parametrize("name", PUBLIC)
def test_prompts_and_metrics_are_lm_evals(name, tmp_path):
    path, records = PUBLIC[name]
    our, their = tasks.get(name), theirs(path, records)
    read = tasks.read(name, write(tmp_path, "records", records))
    # Data sets of a format fill up what a record lacks, so lm-eval reads its own.
    originals = list(their.eval_docs)
    assert len(read) == len(originals) == len(records)
    generator = np.random.default_rng(0)
    for document, original in zip(read, originals, strict=True):
        expected = requests_of(their, original)
        found = our_requests(our, document)
        if our.kind == "write":
            assert found == [context for context, _ in expected]
            assert set(our.stop) == set(expected[0][1]["until"])
            continue
        assert found == expected
        for _ in range(8):
            scores = [
                Score(
                    logprob=float(generator.normal(-20, 4)),
                    is_greedy=bool(generator.integers(2)),
                    tokens=1,
                )
                for _ in found
            ]
            metrics = their.process_results(
                original, [(score.logprob, score.is_greedy) for score in scores]
            )
            assert dict(our.judge_scores(document, scores)) == pytest.approx(metrics)


def numbered(records, numbers):
    """Copies of a record that can be told apart."""
    field = next(key for key, value in records[0].items() if isinstance(value, str))
    return [{**records[0], field: f"{n} {records[0][field]}"} for n in numbers]


def check_examples(name, drawn, documents, task, in_turns):
    """Whole prompts with three examples are lm-eval's."""
    task.set_fewshot_seed(1234)
    template = chat.ChatTemplate(chat.LLAMA2, bos="<s>") if in_turns else None
    for document, original, examples in zip(
        documents, task.eval_docs, drawn, strict=True
    ):
        expected = task.fewshot_context(
            original,
            3,
            apply_chat_template=in_turns,
            fewshot_as_multiturn=in_turns,
            chat_template=template.render if template else None,
        )
        expected = expected if isinstance(expected, list) else [expected]
        assert contexts(tasks.get(name), document, examples, template) == expected


@pytest.mark.parametrize("in_turns", [False, True])
@pytest.mark.parametrize("name", PUBLIC)
def test_examples_from_the_same_file_are_lm_evals(name, in_turns, tmp_path):
    path, records = PUBLIC[name]
    records = numbered(records, range(9))
    their = theirs(
        path, records, test_split="test", validation_split=None, fewshot_split="test"
    )
    our, read = tasks.get(name), tasks.read(name, write(tmp_path, "test", records))
    drawn = draw(read, read, 3, seed=1234, first=our.first_shots)
    check_examples(name, drawn, read, their, in_turns)


@pytest.mark.parametrize("name", sorted({*PUBLIC} - {"truthfulqa_mc2", "lambada"}))
def test_examples_from_their_own_file_are_lm_evals(name, tmp_path):
    """As lm-eval's file has it; two of them have no such split."""
    path, records = PUBLIC[name]
    asked, examples = (numbered(records, range(*ends)) for ends in ((9,), (9, 20)))
    our, read = tasks.get(name), tasks.read(name, write(tmp_path, "test", asked))
    pool = tasks.read(name, write(tmp_path, "train", examples))
    drawn = draw(read, pool, 3, seed=1234, first=our.first_shots, spare=our.spare_shot)
    check_examples(name, drawn, read, theirs(path, asked, examples), False)


LOCAL = sorted(file.stem for file in LOCAL_TASKS.glob("*.yaml"))


@pytest.mark.parametrize("name", LOCAL)
def test_local_tasks_ask_as_the_harness(name, tmp_path):
    from lm_eval.tasks import TaskManager

    write(tmp_path, name, PUBLIC[name][1])
    metadata = {"data_dir": str(tmp_path), "path": "of the model"}
    manager = TaskManager(
        include_path=LOCAL_TASKS, include_defaults=False, metadata=metadata
    )
    local = manager.load(f"local_{name}")["tasks"][f"local_{name}"]
    our, read = tasks.get(name), tasks.read(name, tmp_path)
    for document, original in zip(read, local.eval_docs, strict=True):
        found = requests_of(local, original)
        if our.kind == "write":
            options = found[0][1]
            assert tuple(options["until"]) == our.stop
            found = [context for context, _ in found]
        assert found == our_requests(our, document)


def test_local_tasks_need_a_folder():
    with pytest.raises(InputError, match="add --metadata data_dir=DIR"):
        documents(task="piqa")
    with pytest.raises(InputError, match="no such folder"):
        documents(task="piqa", data_dir="/no/such")


GSM8K_ANSWERS = [
    "So\n#### 4",
    "#### 4.",
    "it is $4.",
    "4 apples, then 5",
    "no number",
    "The answer: 2,000.\n#### 2000",
    "#### -4",
]


def test_gsm8k_is_extracted_as_by_lm_eval(tmp_path):
    from lm_eval.api.instance import Instance

    path, records = PUBLIC["gsm8k"]
    their = theirs(path, records)
    read = tasks.read("gsm8k", write(tmp_path, "records", records))
    judge = tasks.get("gsm8k").judge_texts
    for document, original in zip(read, their.eval_docs, strict=True):
        for answer in GSM8K_ANSWERS:
            instance = Instance("generate_until", original, ("", {}), 0)
            instance.resps = [answer]
            their._instances = [instance]
            their.apply_filters()
            expected = {
                name.replace("-", "_"): their.process_results(
                    original, [instance.filtered_resps[name]]
                )["exact_match"]
                for name in ("strict-match", "flexible-extract")
            }
            [found] = judge([document], [[answer]], tasks.Judging())
            assert dict(found.metrics) == expected, answer


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A small model, and files of two tasks."""
    path = tmp_path_factory.mktemp("lm_eval")
    words = "Question: What flows? Answer: Water, mostly. Ann beat Bea."
    tokenizer = data.train_bpe([words] * 9, vocab_size=300)
    config = LlamaConfig(
        vocab_size=300, d_model=16, d_ff=24, n_layers=1, n_heads=2, max_seq_len=64
    )
    params = models.init(jax.random.key(0), config)
    io.save(path / "model", params, config, tokenizer_files=tokenizer.files)
    for name in ("arc_easy", "winogrande", "gsm8k"):
        write(path, name, PUBLIC[name][1])
    return path


def command(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "sparse_jax.evaluate.lm_eval", *arguments],
        capture_output=True,
        text=True,
        env=os.environ | {"JAX_PLATFORMS": "cpu", "HF_HUB_OFFLINE": "1"},
    )


@pytest.mark.slow
def test_command_line(folder, tmp_path):
    done = command(
        *("--model", "sparse_jax", "--model_args", f"path={folder / 'model'}"),
        *("--tasks", "local_arc_easy,local_winogrande,local_gsm8k"),
        *("--metadata", f"data_dir={folder}", "--output_path", str(tmp_path)),
        *("--num_fewshot", "0", "--gen_kwargs", "max_gen_toks=8"),
    )
    assert done.returncode == 0, done.stderr
    [found] = [json.loads(file.read_text()) for file in tmp_path.rglob("*.json")]
    assert 0 <= found["results"]["local_arc_easy"]["acc_norm,none"] <= 1
    assert 0 <= found["results"]["local_winogrande"]["acc,none"] <= 1
    assert found["results"]["local_gsm8k"]["exact_match,strict-match"] == 0
    assert found["config"]["requests"] == 3 * 4 - 1 + 2 * 2 + 2
    assert "|local_arc_easy" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"--tasks": "local_arc_esy"}, "did you mean local_arc_easy?"),
        ({"--metadata": "other=1"}, "add --metadata data_dir=DIR"),
        ({"--model_args": "path=/no/model"}, "/no/model"),
    ],
)
def test_command_line_refuses_with_one_sentence(folder, changed, message):
    arguments = {
        "--model": "sparse_jax",
        "--model_args": f"path={folder / 'model'}",
        "--tasks": "local_arc_easy",
        "--metadata": f"data_dir={folder}",
    }
    done = command(*(word for pair in (arguments | changed).items() for word in pair))
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith("error: ") and message in last


@pytest.mark.slow
@pytest.mark.parametrize("name", ["stories260K-hf", "babyllama-hf"])
def test_agrees_with_the_hugging_face_backend(name, shared_data):
    pytest.importorskip("torch")
    from benchmarks import harness_agreement

    rows = harness_agreement.agreement(
        shared_data / name, harness_agreement.TASKS, shared_data, limit=50
    )
    assert [row["task"] for row in rows] == [*harness_agreement.TASKS]
    assert all(row["documents"] >= 45 for row in rows)
    assert not [failure for row in rows for failure in harness_agreement.failures(row)]


PAIRS = [
    ("Once upon a time", " there was"),
    ("", " there was"),
    ("", "<s>Once"),
    ("<s>Once", " upon"),
    ("Once ", "upon"),
    ("Once\n\n", "upon a"),
    ("x", "<s>"),
    ("A dog saw a cat. " * 90, "The cat ran."),
]
TEXTS = ["a", " two", "<s>He said", "tab\tnew\n\nline ", "A dog saw a cat. " * 90]
PROMPTS = ["Once upon a time", "The big dog", "", "A dog saw a cat. " * 90]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["stories260K-hf", "babyllama-hf"])
def test_every_kind_of_request_agrees(name, shared_data):
    """Also texts that are longer than the context, and those that spell out "<s>"."""
    pytest.importorskip("torch")
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    path = str(shared_data / name)
    backend = HFLM(path, dtype="float32", device="cpu", batch_size=1)
    adapter = register()(path=path, batch_size=4)
    options = {"until": ["\n\n", "Lily"], "max_gen_toks": 40, "do_sample": False}

    def ask(kind, *arguments):
        asked = [Instance("any", {}, one, 0) for one in arguments]
        return [getattr(model, kind)(asked) for model in (backend, adapter)]

    expected, found = ask("loglikelihood", *PAIRS)
    assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]
    np.testing.assert_allclose(
        [logprob for logprob, _ in found], [logprob for logprob, _ in expected], 0, 1e-3
    )
    expected, found = ask("loglikelihood_rolling", *((text,) for text in TEXTS))
    np.testing.assert_allclose(found, expected, 0, 1e-3)
    # transformers loses the space before the first word.
    expected, found = ask("generate_until", *((p, options) for p in PROMPTS))
    assert [text.removeprefix(" ") for text in found] == [
        text.removeprefix(" ") for text in expected
    ]
