"""Says whether a run fits a machine that is not there, and how long it would take.

python launch/plan.py --config=configs/sparse70.py:llama2_7b --topology=v5e:16x16
python launch/plan.py --config=configs/sparse70.py:llama2_7b --gpus=64xH100 \
    --config.mesh.fsdp=64

For a TPU slice the real training step is compiled when libtpu is installed (pip install
libtpu; no TPU is needed). Else, and for GPUs, the plan is an estimate and says so.
`--compile_stages` compiles the Pallas TPU kernels as well. docs/plan.md has examples.
"""

import os
import pathlib

# The machine is not here: JAX must look for no other than the CPU.
os.environ["JAX_PLATFORMS"] = "cpu"

import cli
from absl import flags
from ml_collections import config_flags

from sparse_jax import plan
from sparse_jax.files import write_json
from sparse_jax.report.text import duration
from sparse_jax.types import InputError

CONFIG = config_flags.DEFINE_config_file("config", None, "Recipe file, see configs/.")
TOPOLOGY = flags.DEFINE_string("topology", None, "TPU slice, such as v5e:16x16.")
GPUS = flags.DEFINE_string("gpus", None, "GPUs, such as 64xH100.")
ESTIMATE = flags.DEFINE_bool("estimate", False, "Do not compile.")
KERNELS = flags.DEFINE_bool("compile_stages", False, "Compile the Pallas kernels too.")
JSON = flags.DEFINE_string("json", None, "File to write the same numbers to.")


def main() -> None:
    if (TOPOLOGY.value is None) == (GPUS.value is None):
        raise InputError("give either --topology (a TPU slice) or --gpus, and not both")
    machine = plan.topology(TOPOLOGY.value) if TOPOLOGY.value else plan.gpus(GPUS.value)
    config = cli.build_recipe(CONFIG.value)
    numbers = plan.plan(config, machine, estimate=ESTIMATE.value)
    print(plan.show(numbers))
    if KERNELS.value:
        seconds = plan.compile_kernels(machine)
        numbers["kernels"] = seconds
        print("\nPallas kernels compiled for one device")
        for name, value in seconds.items():
            print(f"  {name}: {duration(value)}")
    if JSON.value:
        write_json(pathlib.Path(JSON.value), numbers)


if __name__ == "__main__":
    flags.mark_flag_as_required("config")
    cli.run(main)
