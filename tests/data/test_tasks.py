"""Task data: records to conversations, their files, and what is refused."""

import gzip
import json

import pyarrow as pa
import pyarrow.parquet
import pytest

from sparse_jax.data.records import read_records
from sparse_jax.data.sources import find_shards
from sparse_jax.data.task_files import task_source
from sparse_jax.data.tasks import TASKS, find_task
from sparse_jax.types import InputError

CHAT = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
SHARED = [{"from": "system", "value": "s"}, {"from": "human", "value": "q"}]
SHARED += [{"from": "gpt", "value": "a"}]
RECORDS = {
    "chat": ({"messages": CHAT}, "q", "a"),
    "open_platypus": ({"instruction": "q", "input": "x", "output": "a"}, "q\n\nx", "a"),
    "dolphin": ({"instruction": "s", "input": "q", "output": "a"}, "q", "a"),
    "openorca": ({"system_prompt": "", "question": "q", "response": "a"}, "q", "a"),
    "dolly": ({"instruction": "q", "context": "", "response": "a"}, "q", "a"),
    "dolly_hhrlhf": ({"prompt": "q", "response": "a"}, "q", "a"),
    "evol_codealpaca": ({"instruction": "q", "output": "a"}, "q", "a"),
    "mbpp": (
        {"text": "Add.", "test_list": ["assert 1", "assert 2"], "code": "x = 1\r\n"},
        "You are an expert Python programmer, and here is your task: Add. Your code "
        "should pass these tests:\n\nassert 1\nassert 2\n[BEGIN]\n",
        "x = 1\n[DONE]",
    ),
    "gsm8k": ({"question": "q", "answer": "a"}, "Question: q\nAnswer:", " a"),
    "cnn_dailymail": ({"article": "q", "highlights": "a"}, "q\n\nTL;DR:", " a"),
    "functions": ({"instruction": "q", "output": "a"}, "q\n", "a"),
}


@pytest.mark.parametrize("task", TASKS)
def test_a_record_becomes_a_conversation(task):
    record, user, answer = RECORDS[task]
    turns = TASKS[task].read(record, "here")
    assert [t["content"] for t in turns if t["role"] != "system"] == [user, answer]
    assert turns[-1]["role"] == "assistant"


def test_system_messages_come_first():
    assert TASKS["dolphin"].read(RECORDS["dolphin"][0], "here")[0]["content"] == "s"
    roles = [t["role"] for t in TASKS["chat"].read({"conversations": SHARED}, "here")]
    assert roles == ["system", "user", "assistant"]


@pytest.mark.parametrize("task", TASKS)
def test_a_missing_field_is_named_with_its_place(task):
    record = dict(RECORDS[task][0])
    field = [name for name in record if name not in ("input", "context")][-1]
    del record[field]
    with pytest.raises(InputError, match=rf"f.jsonl:3: field '{field}' is missing"):
        TASKS[task].read(record, "f.jsonl:3")


@pytest.mark.parametrize(
    ("record", "said"),
    [
        ({"messages": "hello"}, "field 'messages' must be list, found str 'hello'"),
        ({"messages": ["hello"]}, r"messages\[0\]: expected an object"),
        (
            {"messages": [{"role": "user"}]},
            r"messages\[0\]: field 'content' is missing",
        ),
        ({"messages": [{"role": "bot", "content": ""}]}, "role must be one of"),
    ],
)
def test_broken_conversations(record, said):
    with pytest.raises(InputError, match=said):
        TASKS["chat"].read(record, "f.jsonl:1")


def test_fields_that_cannot_be_text():
    with pytest.raises(InputError, match=r"f:1: field 'answer': .* surrogate '.ud800'"):
        TASKS["gsm8k"].read({"question": "q", "answer": "\ud800"}, "f:1")
    record = RECORDS["mbpp"][0] | {"test_list": ["assert 1", 2]}
    with pytest.raises(InputError, match="f:1, test_list: field '1' must be str"):
        TASKS["mbpp"].read(record, "f:1")


def test_a_task_that_does_not_exist():
    with pytest.raises(InputError, match=r"no task 'gsm8'.*did you mean gsm8k"):
        find_task("gsm8")


def test_the_same_records_from_every_format(tmp_path):
    records = [{"q": "1", "n": "x"}, {"q": "2", "n": 'y "z"'}]
    lines = "\n".join(map(json.dumps, records))
    (tmp_path / "a.jsonl").write_text(lines + "\n\n")
    (tmp_path / "a.json").write_text(json.dumps(records))
    (tmp_path / "b.json").write_text(lines)
    (tmp_path / "a.csv").write_text('q,n\n1,x\n2,"y ""z"""\n')
    with gzip.open(tmp_path / "a.jsonl.gz", "wt") as file:
        file.write(lines)
    pyarrow.parquet.write_table(pa.Table.from_pylist(records), tmp_path / "a.parquet")
    for path in sorted(tmp_path.iterdir()):
        found = list(read_records(path))
        assert [record for _, record in found] == records, path
        assert all(place.startswith(str(path)) for place, _ in found)
    assert [p for p, _ in read_records(tmp_path / "a.jsonl")][1].endswith("a.jsonl:2")


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.txt", "x", "expected a file of records"),
        ("a.jsonl", "{} \n[1]", "a.jsonl:2: expected a JSON object, found a list"),
        ("a.jsonl", '{"a": 1}\n{"a": ', "a.jsonl:2: expected one JSON object"),
        ("a.jsonl", "\n", "holds no record"),
        ("a.csv", "a,b\n1\n", "a.csv:2: expected 2 values"),
        ("a.parquet", "PAR", "cannot be read"),
        ("a.jsonl.gz", "plain", "cannot be read"),
    ],
)
def test_records_that_cannot_be_read(tmp_path, name, content, said):
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(InputError, match=said):
        list(read_records(path))


def test_files_of_a_task_in_a_directory(tmp_path):
    for name in (
        "gsm8k/train.jsonl",
        "gsm8k/test.jsonl",
        "gsm8k/other.jsonl",
        "coding/mbpp.jsonl",
        "ultrachat/train_sft-0.parquet",
        "ultrachat/train_sft-1.parquet",
        "ultrachat/test_sft-0.parquet",
        "notes.txt",
    ):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("{}")
    gsm8k = task_source(tmp_path, "gsm8k")
    assert gsm8k.path == str(tmp_path / "gsm8k/train.jsonl")
    assert gsm8k.heldout == str(tmp_path / "gsm8k/test.jsonl")
    mbpp = task_source(tmp_path, "mbpp", heldout_fraction=0.2)
    assert (mbpp.path, mbpp.heldout) == (str(tmp_path / "coding/mbpp.jsonl"), None)
    assert mbpp.heldout_fraction == 0.2
    chat = task_source(tmp_path, "chat")
    assert chat.path == str(tmp_path / "ultrachat/train_sft-*.parquet")
    with pytest.raises(
        InputError, match=r"no file of task 'dolly'; expected .*'dolly'"
    ):
        task_source(tmp_path / "ultrachat" / "..", "dolly")


def write(folder, *names):
    folder.mkdir()
    for name in names:
        (folder / name).write_text("{}")


def test_validation_files_come_before_test_files(tmp_path):
    folder = tmp_path / "cnn_dailymail"
    write(folder, "train.jsonl", "validation.jsonl", "test.jsonl")
    source = task_source(tmp_path, "cnn_dailymail")
    assert source.path == str(folder / "train.jsonl")
    assert source.heldout == str(folder / "validation.jsonl")


def test_the_directory_of_one_data_set(tmp_path):
    folder = tmp_path / "open_platypus"
    folder.mkdir()
    write(folder / "data", "train-0.parquet")
    expected = str(folder / "data" / "train-0.parquet")
    assert task_source(folder, "open_platypus").path == expected


def test_brackets_in_a_name_are_no_pattern(tmp_path):
    write(tmp_path / "gsm8k[1]", "train-1.jsonl", "train-2.jsonl")
    found = find_shards(task_source(tmp_path, "gsm8k").path)
    assert [path.path[-7:] for path in found] == ["1.jsonl", "2.jsonl"]


def test_a_task_with_held_out_files_alone(tmp_path):
    (tmp_path / "gsm8k_test.jsonl").write_text("{}")
    with pytest.raises(InputError, match="has only held-out files of task 'gsm8k'"):
        task_source(tmp_path, "gsm8k")
