"""How good any model is: its loss on any text, or its answers to any tasks.

python launch/evaluate.py --model=runs/sparse70 --data=embedded:code
python launch/evaluate.py --model=DIR --data=test.txt --window=2048 --json=out.json
python launch/evaluate.py --model=DIR --tasks=arc_easy,piqa,gsm8k --data_dir=DATA

`sparse_jax.evaluate.perplexity` defines loss, perplexity and bits per byte;
docs/evaluate.md says what each task computes and which files it reads.
"""

import pathlib

import cli
import task_flags
from absl import flags

from sparse_jax import data, io
from sparse_jax.evaluate import evaluate
from sparse_jax.files import write_json
from sparse_jax.types import InputError

MODEL = flags.DEFINE_string(
    "model", None, "Hugging Face, run or stage directory, or packed file."
)
DATA = flags.DEFINE_string(
    "data",
    None,
    "Text, JSONL, Parquet or ArrayRecord file, glob or folder; tfds:NAME; or the "
    "held-out part of embedded:code or embedded:prose.",
)
WINDOW = flags.DEFINE_integer("window", 256, "Tokens per window, each read afresh.")
BATCH_SIZE = flags.DEFINE_integer("batch_size", 16, "Texts per call of the model.")
TOKENIZER = flags.DEFINE_string(
    "tokenizer", None, "tokenizer.json, .model or a directory; the model's by default."
)
FIELD = flags.DEFINE_string("field", "text", "Field of JSONL or Parquet to read.")
JSON = flags.DEFINE_string("json", None, "File to write the same numbers to.")


def main() -> None:
    if (DATA.value is None) == (task_flags.TASKS.value is None):
        raise InputError("set one of --data and --tasks")
    if task_flags.TASKS.value is not None:
        task_flags.ask(MODEL.value, BATCH_SIZE.value, JSON.value)
        return
    model = io.resolve(MODEL.value)
    if model.params is None:
        raise InputError(f"--model={MODEL.value} is a size without weights")
    tokenizer = model.tokenizer
    if TOKENIZER.value is not None:
        tokenizer = data.load_tokenizer(TOKENIZER.value)
    if tokenizer is None:
        raise InputError(f"--model={MODEL.value} has no tokenizer; set --tokenizer")
    ids, nbytes = data.stream_from_path(DATA.value, tokenizer, field=FIELD.value)
    result = evaluate(
        model.effective_params,
        model.config,
        ids,
        nbytes,
        window=WINDOW.value,
        batch_size=BATCH_SIZE.value,
        data=DATA.value,
        split="heldout" if DATA.value.startswith("embedded:") else "all",
        tokenizer=tokenizer.fingerprint,
    )
    numbers = {"model": MODEL.value, "source": model.source} | result.numbers()
    for name, value in numbers.items():
        text = f"{value:,}" if isinstance(value, int) else value
        print(f"{name:<14}{f'{value:.6f}' if isinstance(value, float) else text}")
    if JSON.value:
        write_json(pathlib.Path(JSON.value), numbers)


if __name__ == "__main__":
    flags.mark_flags_as_required(["model"])
    cli.run(main)
