"""Packs a model into one file, each matrix in the storage type that suits its zeros.

python launch/export.py --model=runs/sparse70 --format=auto --out=model.packed
python launch/export.py --model=DIR --dtype=int8 --evaluate=test.txt --out=int8.packed

Nothing is rounded unless --dtype or --format asks for it. With --evaluate, the losses
of the checkpoint and of the packed model are printed.
"""

import pathlib

import cli
from absl import flags

from sparse_jax import data, host, infer, io
from sparse_jax.evaluate import evaluate_blocks
from sparse_jax.files import write_json
from sparse_jax.types import InputError

MODEL = flags.DEFINE_string("model", None, "Hugging Face, run or stage directory.")
OUT = flags.DEFINE_string("out", None, "The new packed file.")
FORMAT = flags.DEFINE_string("format", "auto", "Storage type of all matrices, or auto.")
DTYPE = flags.DEFINE_string(
    "dtype", None, "float32, bfloat16, int8, int4, int2; by default, the checkpoint's."
)
HEAD = flags.DEFINE_string("head", "auto", "Storage type of the head, dense; or auto.")
EVALUATE = flags.DEFINE_string("evaluate", None, "Text for the loss before and after.")
WINDOW = flags.DEFINE_integer("window", 256, "Tokens per window of --evaluate.")
JSON = flags.DEFINE_string("json", None, "File to write the same numbers to.")


def main() -> None:
    settings = infer.PackConfig(format=FORMAT.value, dtype=DTYPE.value, head=HEAD.value)
    host.choose_memory(pathlib.Path(MODEL.value))
    reader = io.open_blocks(MODEL.value)
    text = read_text(reader) if EVALUATE.value else None  # its errors come early
    report = infer.pack_checkpoint(reader, OUT.value, settings)
    print(infer.pack_table(report))
    if text is not None:
        packed = io.PackedBlocks(io.read_packed(OUT.value))
        before, after = (loss(blocks, *text) for blocks in (reader, packed))
        report["loss"] = {"before": before, "after": after}
        print(
            f"\nloss on {EVALUATE.value}: {before['loss']:.6f} before, "
            f"{after['loss']:.6f} after, computed by its kernels"
        )
    if JSON.value:
        write_json(pathlib.Path(JSON.value), report)


def read_text(reader: io.BlockReader):
    """The token ids of the text and their bytes."""
    if reader.tokenizer is None:
        raise InputError(f"--model={MODEL.value} has no tokenizer to --evaluate with")
    return data.stream_from_path(EVALUATE.value, reader.tokenizer)


def loss(blocks, ids, nbytes) -> dict:
    """The numbers of `evaluate`."""
    settings = {"window": WINDOW.value, "data": EVALUATE.value}
    return evaluate_blocks(blocks, ids, nbytes, **settings).numbers()


if __name__ == "__main__":
    flags.mark_flags_as_required(["model", "out"])
    cli.run(main, keep_memory=False)
