"""Continues prompts with a packed model, or with any other directory of one.

python launch/generate.py --model=model.packed --prompt="Once upon a time"
python launch/generate.py --model=DIR --prompts=FILE --temperature=0.8 --top_p=0.95

The text goes to standard output as it is written, rates go to standard error. The
prompts of a file, one a line, are worked on together.
"""

import dataclasses
import pathlib
import sys

import cli
from absl import flags

from sparse_jax import infer
from sparse_jax.files import write_json
from sparse_jax.types import InputError

MODEL = flags.DEFINE_string(
    "model", None, "Packed file; Hugging Face, run or stage directory."
)
PROMPT = flags.DEFINE_string("prompt", None, "Text to continue.")
PROMPTS = flags.DEFINE_string("prompts", None, "File of texts to continue, one a line.")
MAX_TOKENS = flags.DEFINE_integer("max_tokens", 128, "The most that are written.")
TEMPERATURE = flags.DEFINE_float("temperature", 0.0, "0 = the likeliest token always.")
TOP_K = flags.DEFINE_integer("top_k", 0, "Only the k likeliest tokens; 0 = all.")
TOP_P = flags.DEFINE_float("top_p", 1.0, "Only the likeliest of this probability.")
SEED = flags.DEFINE_integer("seed", 0, "Of the first prompt; the next has the next.")
BATCH_SIZE = flags.DEFINE_integer("batch_size", 16, "Prompts worked on at a time.")
JSON = flags.DEFINE_string("json", None, "File to write texts and numbers to.")


def main() -> None:
    if (PROMPT.value is None) == (PROMPTS.value is None):
        raise InputError("set one of --prompt and --prompts")
    prompts = [PROMPT.value] if PROMPTS.value is None else read_lines(PROMPTS.value)
    options = {
        flag.name: flag.value for flag in (MAX_TOKENS, TEMPERATURE, TOP_K, TOP_P)
    }
    engine = infer.Engine.load(MODEL.value)
    if PROMPTS.value is None:
        tokens, written = [], engine.stream(PROMPT.value, seed=SEED.value, **options)
        print(PROMPT.value, end="", flush=True)
        for token in written:
            tokens.append(token)
            print(token, end="", flush=True)
        print()
        texts = [{"text": "".join(map(str, tokens)), "ids": [t.id for t in tokens]}]
    else:
        options |= {"seed": SEED.value, "batch_size": BATCH_SIZE.value}
        texts = [dataclasses.asdict(c) for c in engine.generate(prompts, **options)]
        for prompt, text in zip(prompts, texts, strict=True):
            print(f"{prompt}{text['text']}\n")
    print(engine.rates, file=sys.stderr)
    if JSON.value:
        texts = [{"prompt": p} | t for p, t in zip(prompts, texts, strict=True)]
        report = {"model": MODEL.value, "source": engine.model.source}
        report |= {"rates": engine.rates.numbers(), "completions": texts}
        write_json(pathlib.Path(JSON.value), report)


def read_lines(path: str) -> list[str]:
    try:
        text = pathlib.Path(path).read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--prompts={path} cannot be read as text: {error}") from error
    lines = [line for line in text.split("\n") if line.strip()]
    if not lines:
        raise InputError(f"--prompts={path} holds no prompt; write one a line")
    return lines


if __name__ == "__main__":
    flags.mark_flags_as_required(["model"])
    cli.run(main)
