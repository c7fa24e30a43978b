"""`launch/evaluate.py --tasks=...`: its flags, and what it prints and writes."""

import json
import pathlib

from absl import flags

from sparse_jax.evaluate import (
    HarnessConfig,
    LanguageModel,
    results_table,
    run_tasks,
)
from sparse_jax.files import write_file, write_json
from sparse_jax.models import Compute
from sparse_jax.types import InputError

TASKS = flags.DEFINE_list("tasks", None, "Tasks to ask, such as arc_easy,gsm8k.")
DATA_DIR = flags.DEFINE_string("data_dir", None, "Folder with their files; or a file.")
SAMPLES = flags.DEFINE_string("samples", None, "JSONL file for what each answered.")
CHAT = flags.DEFINE_bool("apply_chat_template", False, "Ask in turns of a chat.")
MAX_LENGTH = flags.DEFINE_integer("max_length", None, "Tokens read; the model's most.")
ADD_BOS = flags.DEFINE_bool(
    "add_bos_token", None, "Begin texts with bos; by default as the tokenizer does."
)
DTYPE = flags.DEFINE_enum(
    "dtype", "auto", ("auto", "float32", "bfloat16"), "Of scoring; see models.Compute."
)
SETTINGS = (
    flags.DEFINE_integer("shots", None, "Examples per question; the task's usual."),
    flags.DEFINE_integer("seed", 1234, "Of drawn examples and of sampling."),
    flags.DEFINE_integer("limit", None, "Only the first documents of each task."),
    flags.DEFINE_integer("num_samples", 1, "Answers written to each question."),
    flags.DEFINE_float("temperature", 0.0, "Of writing; 0 = the likeliest always."),
    flags.DEFINE_integer("top_k", 0, "Only the k likeliest tokens; 0 = all."),
    flags.DEFINE_float("top_p", 1.0, "Only the likeliest of this probability."),
    flags.DEFINE_integer("max_tokens", None, "Of an answer; the task's usual number."),
    flags.DEFINE_string("template", "chat", "chat (the model's), llama2 or a file."),
    flags.DEFINE_bool(
        "unsafe_code",
        False,
        "Run what the model writes even where a layer "
        "of its sandbox is missing (docs/sandbox.md).",
    ),
)


def ask(path: str, batch_size: int, json_path: str | None) -> None:
    """Runs the tasks, writes the files and prints the table."""
    if DATA_DIR.value is None:
        raise InputError("--tasks needs --data_dir, the folder with the tasks' files")
    settings = {flag.name: flag.value for flag in SETTINGS}
    config = HarnessConfig(chat=CHAT.value, **settings)
    model = LanguageModel(
        path,
        max_length=MAX_LENGTH.value,
        batch_size=batch_size,
        compute=Compute(dtype=DTYPE.value),
        add_bos_token=ADD_BOS.value,
    )
    print(f"{path}: {model.source}")
    results = []
    for result in run_tasks(model, TASKS.value, DATA_DIR.value, config):
        results.append(result)
        if json_path:  # after each task: what is done is not lost to what follows
            tasks = [one.numbers() for one in results]
            report = {"model": path, "source": model.source, "tasks": tasks}
            write_json(pathlib.Path(json_path), report)
        if SAMPLES.value:
            samples = [sample for one in results for sample in one.samples]
            lines = [f"{json.dumps(sample)}\n" for sample in samples]
            write_file(pathlib.Path(SAMPLES.value), "".join(lines).encode())
    print(results_table(results))
    for result in results:
        if result.shots:
            print(f"{result.task}: examples from {result.shots_from}")
