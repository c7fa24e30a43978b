"""A recipe of every kind of stage that runs in seconds, and how two runs compare."""

import dataclasses
import json
import pathlib
import random

from configs import common
from sparse_jax import io
from sparse_jax.data import DataConfig, SourceConfig
from sparse_jax.evaluate import EvaluateConfig
from sparse_jax.models import LlamaConfig
from sparse_jax.prune import PruneConfig
from sparse_jax.recipe import Recipe
from sparse_jax.train import ScheduleConfig, TrainConfig
from sparse_jax.tree import leaf_paths

MODEL = LlamaConfig(
    vocab_size=320, d_model=32, d_ff=48, n_layers=1, n_heads=2, max_seq_len=64
)
STAGES = (
    "dense",
    "one_shot_50",
    "trained_50",
    "one_shot_70",
    "trained_70",
    "dense_control_50",
    "dense_control",
    "one_shot",
    "export",
)
MODELS = tuple(s for s in STAGES if s not in ("one_shot", "export"))
RATES = ("seconds", "tokens_per_second")


def write_corpus(directory: pathlib.Path) -> pathlib.Path:
    """Two domains of made-up documents, the same every time."""
    rng = random.Random(0)
    words = ["".join(rng.choices("abcdefgh", k=rng.randint(2, 7))) for _ in range(60)]
    for domain in ("code", "prose"):
        with (directory / f"{domain}.jsonl").open("w") as file:
            for _ in range(120):
                text = " ".join(rng.choices(words, k=rng.randint(20, 60)))
                file.write(json.dumps({"text": text}) + "\n")
    return directory


def make_recipe(corpus: pathlib.Path, **fields) -> Recipe:
    """Dense, 50 %, 70 %, control, one-shot comparison and export on `corpus`."""
    chain = common.sparse_chain(
        *(
            common.Retrain(sparsity=s, steps=4, peak=1e-2, control_peak=1e-2)
            for s in (0.5, 0.7)
        )
    )
    stages = chain["stages"]
    stages["one_shot"] = dataclasses.replace(
        stages["one_shot"], solvers=("magnitude", "sparsegpt"), sparsities=(0.5, 0.7)
    )
    sources = {
        name: SourceConfig(path=str(corpus / f"{name}.jsonl"), heldout_fraction=0.2)
        for name in ("code", "prose")
    }
    recipe = Recipe(
        name="tiny",
        model=MODEL,
        data=DataConfig(sources=sources, vocab_size=MODEL.vocab_size),
        train=TrainConfig(
            steps=5,
            batch_size=4,
            seq_len=16,
            checkpoint_every=2,
            log_every=1,
            schedule=ScheduleConfig(kind="constant", peak=1e-2),
        ),
        prune=PruneConfig(samples=8, sample_length=16, batch_size=8),
        evaluate=EvaluateConfig(window=32, batch_size=64),
        **chain,
    )
    return dataclasses.replace(recipe, **fields)


def replace(recipe: Recipe, part: str, **fields) -> Recipe:
    """The recipe with some fields of one of its parts replaced."""
    value = dataclasses.replace(getattr(recipe, part), **fields)
    return dataclasses.replace(recipe, **{part: value})


def replace_stage(recipe: Recipe, name: str, **fields) -> Recipe:
    """The recipe with some fields of one stage replaced."""
    stage = dataclasses.replace(recipe.stages[name], **fields)
    return dataclasses.replace(recipe, stages=recipe.stages | {name: stage})


def without_rates(value):
    """JSON without times and rates, the only numbers in which two runs may differ."""
    if isinstance(value, dict):
        return {k: without_rates(v) for k, v in value.items() if k not in RATES}
    if isinstance(value, list):
        return [without_rates(item) for item in value]
    return value


def contents(workdir: pathlib.Path) -> dict[str, object]:
    """Every file of a run that must not depend on where it was stopped, by its path.

    Left out are checkpoints (read through their own tests), TensorBoard's, and what
    draws or prints times.
    """
    found = {}
    for path in sorted(p for p in workdir.rglob("*") if p.is_file()):
        name = path.relative_to(workdir)
        if {"checkpoints", "tensorboard"} & {*name.parts} or name.suffix == ".md":
            continue
        if path.suffix == ".json":
            found[str(name)] = without_rates(json.loads(path.read_text()))
        elif path.suffix == ".jsonl":
            rows = [json.loads(line) for line in path.read_text().splitlines()]
            found[str(name)] = without_rates(rows)
        else:
            found[str(name)] = path.read_bytes()
    return found


def assert_same(found: pathlib.Path, expected: pathlib.Path) -> None:
    """Fails at the first file in which two runs differ."""
    left, right = contents(found), contents(expected)
    assert sorted(left) == sorted(right)
    for name, value in right.items():
        assert left[name] == value, f"{name} differs"


def masks_of(stage: pathlib.Path) -> dict:
    """Masks of a finished stage by path, dense leaves left out."""
    masks = leaf_paths(io.resolve(stage).masks)
    return {path: mask for path, mask in masks.items() if mask is not None}
