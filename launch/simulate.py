"""What sparsity would gain on a machine that streams weights and skips zeros.

python launch/simulate.py --machine=cs3 --model=llama2_7b --sparsity=0.5,0.7,0.75,0.9
python launch/simulate.py --machine=cs3 --model=RUN_OR_HF_DIR --out=DIR

A directory is simulated with its own masks, a size, or --sparsity, with drawn ones.
docs/dataflow.md describes the model, its constants, and what published results say.
"""

import functools
import pathlib

import cli
import tqdm
from absl import flags

from sparse_jax import dataflow
from sparse_jax.files import write_file, write_json
from sparse_jax.report import dataflow_files, dataflow_summary

MACHINE = flags.DEFINE_string("machine", "cs3", "Name of the machine.")
MODEL = flags.DEFINE_string("model", None, "Size, or directory of a model.")
SPARSITY = flags.DEFINE_list("sparsity", None, "Of the drawn masks of a size.")
MASKS = flags.DEFINE_string(
    "masks", "uniform", "uniform, balanced, sparsegpt, or a pattern such as 2:4."
)
CONTEXT = flags.DEFINE_integer("context", None, "Tokens; 4096, or the model's.")
BATCH = flags.DEFINE_integer("batch", None, "Sequences; as many as fit if not given.")
MODE = flags.DEFINE_enum("mode", "training", dataflow.MODES, "What is timed.")
WEIGHT_GRADIENT = flags.DEFINE_enum(
    "weight_gradient", "kept", dataflow.WEIGHT_GRADIENTS, "At which positions."
)
RECOMPUTE = flags.DEFINE_bool("recompute", False, "Count a second forward pass.")
SYSTEMS = flags.DEFINE_integer("systems", 1, "That share the stream; batch is of each.")
SEED = flags.DEFINE_integer("seed", 0, "Of the masks that are drawn.")
OUT = flags.DEFINE_string("out", None, "Directory for tables and plots.")
JSON = flags.DEFINE_string("json", None, "File to write the same numbers to.")


def main() -> None:
    machine = dataflow.machine(MACHINE.value)
    found = dataflow.find(MODEL.value, SPARSITY.value, MASKS.value, SEED.value)
    work = dataflow.fit(
        machine,
        found.model,
        batch=BATCH.value,
        context=CONTEXT.value,
        mode=MODE.value,
        weight_gradient=WEIGHT_GRADIENT.value,
        recompute=RECOMPUTE.value,
    )
    options = {"systems": SYSTEMS.value, "seed": SEED.value}
    options["first_layer"] = found.first_layer
    with tqdm.tqdm(desc="simulate", unit="part", leave=False, disable=None) as bar:
        options["progress"] = functools.partial(show, bar)
        numbers = dataflow.sweep(machine, work, found.masks, **options)
    print(dataflow_summary(numbers := {"model": MODEL.value} | numbers))
    for name, content in dataflow_files(numbers).items() if OUT.value else ():
        write_file(pathlib.Path(OUT.value) / name, content)
    if JSON.value:
        write_json(pathlib.Path(JSON.value), numbers)


def show(bar: tqdm.tqdm, done: int, total: int) -> None:
    bar.total = total
    bar.update(done - bar.n)


if __name__ == "__main__":
    flags.mark_flags_as_required(["model"])
    cli.run(main)
