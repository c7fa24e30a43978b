"""Runs a recipe: `python launch/train.py --config=configs/sparse70.py`.

Run again after any interruption, the same command continues where it stopped.
"""

import pathlib

import cli
from absl import flags
from ml_collections import config_flags

from sparse_jax import recipe

CONFIG = config_flags.DEFINE_config_file("config", None, "Recipe file, see configs/.")
WORKDIR = flags.DEFINE_string(
    "workdir", None, "Where stages and report go; runs/NAME if not given."
)
RESTART_FROM = flags.DEFINE_string(
    "restart_from", None, "Stage to do again, with all that follow from it."
)


def main() -> None:
    config = cli.build(recipe.Recipe, CONFIG.value)
    workdir = WORKDIR.value or pathlib.Path("runs", config.name)
    recipe.run(config, workdir, restart_from=RESTART_FROM.value)


if __name__ == "__main__":
    flags.mark_flag_as_required("config")
    cli.run(main)
