"""How fast a model reads and writes, beside the same weights in other storage types.

python launch/bench.py --model=model.packed --against=dense_float32,dense_int4

Decoding reads all weights for every token: the last column is the share of the memory's
bandwidth, measured first, that this comes to. Quantised types in --against round the
weights to nearest; compare their loss with launch/export.py.
"""

import pathlib

import cli
from absl import flags

from sparse_jax import infer, kernels
from sparse_jax.files import write_json

MODEL = flags.DEFINE_string(
    "model", None, "Packed file; Hugging Face, run or stage directory."
)
AGAINST = flags.DEFINE_list(
    "against", ["dense_float32"], "Storage types; speed-ups are over the first."
)
PROMPT_TOKENS = flags.DEFINE_integer("prompt_tokens", 256, "Tokens read.")
TOKENS = flags.DEFINE_integer("tokens", 64, "Tokens written.")
REPEATS = flags.DEFINE_integer("repeats", 3, "The fastest of so many counts.")
JSON = flags.DEFINE_string("json", None, "File to write the same numbers to.")


def main() -> None:
    for kind in AGAINST.value:
        kernels.find_format(kind)  # before anything is loaded
    numbers = infer.compare(
        infer.load_model(MODEL.value),
        AGAINST.value,
        prompt_tokens=PROMPT_TOKENS.value,
        tokens=TOKENS.value,
        repeats=REPEATS.value,
    )
    print(infer.speed_table(numbers))
    if JSON.value:
        write_json(pathlib.Path(JSON.value), {"model": MODEL.value} | numbers)


if __name__ == "__main__":
    flags.mark_flags_as_required(["model"])
    cli.run(main, keep_memory=False)
