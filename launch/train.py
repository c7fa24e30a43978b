"""Runs a recipe: `python launch/train.py --config=configs/sparse70.py`.

Run again after any interruption, the same command continues where it stopped. On
several machines every process runs the same command, see `docs/distributed.md`.
"""

import logging
import pathlib

import cli
from absl import flags
from ml_collections import config_flags

from sparse_jax import distributed, recipe, train

CONFIG = config_flags.DEFINE_config_file("config", None, "Recipe file, see configs/.")
WORKDIR = flags.DEFINE_string(
    "workdir", None, "Where stages and report go; runs/NAME if not given."
)
RESTART_FROM = flags.DEFINE_string(
    "restart_from", None, "Stage to do again, with all that follow from it."
)
DISTRIBUTED = flags.DEFINE_bool(
    "distributed", False, "One of the processes that SLURM, a TPU pod, ... started."
)
COORDINATOR = flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0.")
NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "Processes of the run.")
PROCESS_ID = flags.DEFINE_integer("process_id", None, "Which this one is, from 0.")
START_TIMEOUT = flags.DEFINE_integer(
    "start_timeout", 300, "Seconds to wait for all processes to come."
)
PEER_TIMEOUT = flags.DEFINE_integer(
    "peer_timeout", 60, "Seconds without a sign of life that end all processes."
)


def join() -> None:
    """Joins the other processes, if any flag says that there are some."""
    own = {flag.name: flag.value for flag in (COORDINATOR, NUM_PROCESSES, PROCESS_ID)}
    if DISTRIBUTED.value or any(value is not None for value in own.values()):
        timeouts = {flag.name: flag.value for flag in (START_TIMEOUT, PEER_TIMEOUT)}
        distributed.initialize(distributed.DistributedConfig(**own, **timeouts))
        if not distributed.is_lead():
            logging.getLogger("sparse_jax").setLevel(logging.ERROR)


def main() -> None:
    join()
    config = cli.build_recipe(CONFIG.value)
    workdir = WORKDIR.value or pathlib.Path("runs", config.name)
    with train.listen_for_sigterm():
        recipe.run(config, workdir, restart_from=RESTART_FROM.value)


if __name__ == "__main__":
    flags.mark_flag_as_required("config")
    cli.run(main)
