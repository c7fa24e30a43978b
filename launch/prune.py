"""Prunes and rounds a Llama on disk in one shot, one block in memory at a time.

python launch/prune.py --model=HF_DIR --out=OUT_DIR \
    --config=configs/prune.py:sparsegpt --config.sparsity=0.7 --config.calibration=FILE

With --config=configs/quantize.py:w8a8 and its like it rounds to integers as well.

Run again after any interruption, the same command continues where it stopped.
"""

import pathlib

import cli
from absl import flags
from ml_collections import config_flags

from sparse_jax import host, recipe, report
from sparse_jax.files import write_json

MODEL = flags.DEFINE_string("model", None, "Hugging Face, run or stage directory.")
OUT = flags.DEFINE_string("out", None, "The new Hugging Face directory.")
CONFIG = config_flags.DEFINE_config_file(
    "config", None, "See configs/prune.py and configs/quantize.py."
)
JSON = flags.DEFINE_string("json", None, "File to write the same numbers to.")


def main() -> None:
    job = cli.build(recipe.PruneJob, CONFIG.value)
    host.choose_memory(pathlib.Path(MODEL.value))
    numbers = recipe.run_prune(job, MODEL.value, OUT.value)
    print(report.pruning_summary(numbers))
    print(f"report: {pathlib.Path(OUT.value, 'prune_report.md')}")
    if JSON.value:
        write_json(pathlib.Path(JSON.value), numbers)


if __name__ == "__main__":
    flags.mark_flags_as_required(["model", "out", "config"])
    cli.run(main, keep_memory=False)
