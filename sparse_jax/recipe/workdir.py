"""The working directory of a recipe: whose it is, what is finished, what must agree."""

import contextlib
import pathlib
import shutil
from collections.abc import Collection, Iterator
from typing import IO, Any

from sparse_jax import __version__, distributed
from sparse_jax.files import disk_errors, lock, read_json, write_json
from sparse_jax.recipe.config import Recipe
from sparse_jax.recipe.stage_kinds import (
    Evaluate,
    Export,
    Init,
    OneShot,
    Pack,
    Pretrain,
    Prune,
    Stage,
)
from sparse_jax.recipe.stages import RESULT
from sparse_jax.schema import to_dict
from sparse_jax.types import InputError

RECIPE, STAGE, LOCK = "recipe.json", "stage.json", ".lock"

_NO_EFFECT = ("checkpoint_every", "keep_checkpoints", "log_every")
"""Training fields that change files on the way, not the result."""

_METHOD = ("teacher", "adaptive", "low_rank", "learned_scales", "lora", "quantize")
"""Fields of a pretrain stage that its training settings do not hold."""


@contextlib.contextmanager
def open_workdir(directory: pathlib.Path, recipe: Recipe) -> Iterator[None]:
    """Claims a working directory for a recipe; the lead locks it for all processes.

    Raises:
      InputError: it belongs to another recipe, is in use, is no directory of ours, or
        some process does not see it.
    """
    with contextlib.ExitStack() as claimed:

        def claim() -> None:
            with disk_errors(directory):
                claimed.enter_context(_lock(directory))
            _check_owner(directory, recipe)
            if not (directory / RECIPE).exists():
                record(directory, recipe)

        distributed.on_lead(claim)
        _check_shared(directory)
        yield


def _check_shared(directory: pathlib.Path) -> None:
    """Raises InputError on all processes when one does not see the lead's directory."""
    seen = distributed.gather((directory / RECIPE).exists())
    if not all(seen):
        raise InputError(
            f"{directory}: process {seen.index(False)} does not find the {RECIPE} that "
            "process 0 has written there; choose a --workdir on a filesystem that all "
            "machines share"
        )


def record(directory: pathlib.Path, recipe: Recipe) -> None:
    """Writes the recipe that a working directory belongs to."""
    values = {"name": recipe.name, "final": recipe.final, "version": __version__}
    write_json(directory / RECIPE, values | {"config": to_dict(recipe)})


def _lock(directory: pathlib.Path) -> IO[str]:
    """Makes the directory, if it is not there, and locks it until the file closes."""
    if directory.exists() and not directory.is_dir():
        raise InputError(f"{directory}: is a file; choose another --workdir")
    if not (directory / RECIPE).exists() and _foreign(directory):
        raise InputError(
            f"{directory}: is not empty and holds no {RECIPE}; choose another --workdir"
        )
    directory.mkdir(parents=True, exist_ok=True)
    return lock(directory / LOCK)


def _foreign(directory: pathlib.Path) -> bool:
    """Whether there is more than what a run killed at its very start leaves."""
    ours = {LOCK, f".{RECIPE}.partial"}
    return directory.is_dir() and any(p.name not in ours for p in directory.iterdir())


def _check_owner(directory: pathlib.Path, recipe: Recipe) -> None:
    owner = directory / RECIPE
    if owner.exists():
        found = read_json(owner).get("name")
        if found != recipe.name:
            raise InputError(
                f"{directory}: belongs to the recipe {found!r}, not to "
                f"{recipe.name!r}; choose another --workdir"
            )


def descendants(recipe: Recipe, first: str) -> list[str]:
    """A stage and all that descend from it, in the order they run.

    Raises:
      InputError: there is no such stage.
    """
    stages = recipe.enabled_stages()
    if first not in stages:
        raise InputError(
            f"--restart_from={first}: there is no such stage; choose one of "
            f"{list(stages)}"
        )
    affected = [first]
    for name, stage in stages.items():
        if {stage.parent, getattr(stage, "teacher", None)} & {*affected}:
            affected.append(name)
    return affected


def set_aside(directory: pathlib.Path, names: Collection[str]) -> None:
    """Moves stages to `replaced/N/`; nothing is deleted."""
    replaced = directory / "replaced"
    number = len(list(replaced.iterdir())) if replaced.exists() else 0
    # Children first, so that a kill leaves no child that was made by another parent.
    for name in reversed([n for n in names if (directory / n).exists()]):
        target = replaced / str(number) / name
        with disk_errors(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.move(directory / name, target)


def check_stages(
    directory: pathlib.Path,
    recipe: Recipe,
    data: dict[str, Any],
    *,
    but: Collection[str] = (),
) -> None:
    """Compares the config of every stage that has begun with the one it began with.

    Args:
      directory: the working directory.
      recipe: as it is now.
      data: `Dataset.fingerprint`, so that changed data counts as well.
      but: stages that are about to be done again.

    Raises:
      InputError: naming the first field that differs, or a stage whose parent is
        gone, and how to go on.
    """
    for name, stage in recipe.enabled_stages().items():
        path = directory / name / STAGE
        if name in but or not path.exists():
            continue
        if stage.parent and not (directory / stage.parent / RESULT).exists():
            raise InputError(
                f"{directory / name}: was made from {stage.parent}, which is not there "
                f"any more; add --restart_from={stage.parent} to do both again"
            )
        now, then = stage_config(recipe, stage, data), read_json(path)
        difference = distributed.first_difference(then, now, name)
        if difference:
            where, old, new = difference
            state = "finished" if (directory / name / RESULT).exists() else "begun"
            raise InputError(
                f"{directory / name}: the stage was {state} with {where} = {old!r}, "
                f"the config now says {new!r}; undo the change, or add "
                f"--restart_from={name} to do it and what follows again"
            )


def begin_stage(
    directory: pathlib.Path, recipe: Recipe, stage: Stage, data: dict[str, Any]
) -> None:
    """Records the config that a stage begins with."""
    if not (directory / STAGE).exists():
        write_json(directory / STAGE, stage_config(recipe, stage, data))


def stage_config(recipe: Recipe, stage: Stage, data: dict[str, Any]) -> dict[str, Any]:
    """Everything that a stage's result depends on, its parent's apart."""
    config: dict[str, Any] = {
        "kind": stage.kind,
        "parent": stage.parent,
        "seed": recipe.seed,
        "compute": to_dict(recipe.compute),
        "corpus": {n: data["sources"][n]["sha256"] for n in _read(recipe, stage)},
        "tokenizer": data["tokenizer"]["sha256"],
    }
    if isinstance(stage, Pretrain):
        training = to_dict(recipe.train_config(stage))
        config["train"] = {k: v for k, v in training.items() if k not in _NO_EFFECT}
        if training["divergence"]["action"] == "skip":
            # What is skipped begins at a checkpoint.
            config["train"]["checkpoint_every"] = training["checkpoint_every"]
        config["data"] = _data(recipe, stage)
        if stage.parent is None:
            config["model"] = to_dict(stage.model or recipe.model)
        if stage.seed is not None:
            config["seed"] = stage.seed
        config |= {name: to_dict(getattr(stage, name)) for name in _METHOD}
        distill = to_dict(stage.distill) or {}  # where its cache lies has no effect
        config["distill"] = {k: v for k, v in distill.items() if k != "cache_dir"}
        config["rules"] = to_dict(recipe.prune.rules)
    elif isinstance(stage, Prune):
        config["prune"] = to_dict(recipe.prune_config(stage))
        config["calibrate_on"] = list(recipe.calibration_sources(stage))
        config["data"] = _data(recipe, stage)
    elif isinstance(stage, OneShot):
        config |= {"solvers": list(stage.solvers), "prune": to_dict(recipe.prune)}
        config |= {"sparsities": list(stage.sparsities), "data": _data(recipe, stage)}
    elif isinstance(stage, Init):
        config |= {"path": stage.path, "max_seq_len": stage.max_seq_len}
        config["data"] = _data(recipe, stage)
    if isinstance(stage, Export):
        config["dtype"] = stage.dtype
    elif isinstance(stage, Evaluate):
        asked = {field: getattr(stage, field) for field in ("tasks", "data_dir")}
        config |= to_dict(asked | {"harness": stage.harness})
    else:
        if isinstance(stage, Pack):
            config["pack"] = to_dict(stage)
        config["evaluate"] = to_dict(recipe.evaluate)
        config["sources"] = list(recipe.sources(stage))
    return config


def _read(recipe: Recipe, stage: Stage) -> list[str]:
    """The sources that a stage reads; what others hold does not matter to it."""
    used = {*recipe.sources(stage), *recipe.calibration_sources(stage)}
    return [name for name in recipe.data.sources if name in used]


def _data(recipe: Recipe, stage: Stage) -> dict[str, Any]:
    """The data's settings that shape a batch; where it is cached does not."""
    values = {k: v for k, v in to_dict(recipe.data).items() if k != "cache_dir"}
    sources = {name: values["sources"][name] for name in _read(recipe, stage)}
    return values | {"sources": sources}
