"""What experiment files share: the chain of stages, the small model, flags for all.

`to_config` turns a frozen dataclass into a ConfigDict whose every field, those that are
None too, can be set from the command line.
"""

import dataclasses
import types
import typing
from typing import Any

from ml_collections import ConfigDict, config_dict

from sparse_jax import schema
from sparse_jax.data import DataConfig, SourceConfig
from sparse_jax.mesh import MeshConfig
from sparse_jax.models import Compute, sizes
from sparse_jax.prune import PruneConfig
from sparse_jax.recipe import Export, OneShot, Pretrain, Prune, Recipe
from sparse_jax.train import ScheduleConfig, TrainConfig
from sparse_jax.types import InputError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Retrain:
    """One pruning step and the pretraining after it.

    Attributes:
      sparsity: of every linear of a block.
      steps: optimizer steps after pruning, and of the control.
      peak: highest learning rate of the sparse model.
      control_peak: of the dense control, tuned as much.
    """

    sparsity: float
    steps: int
    peak: float
    control_peak: float


def sparse_chain(*retrain: Retrain) -> dict[str, Any]:
    """The paper's stages, with their control, as keywords of a Recipe.

    Dense pretraining; then SparseGPT and sparse pretraining, without warm-up, for each
    step. The control repeats the pretraining on the same batches with its own peak
    learning rate. One-shot solvers are compared on the dense model.
    """
    chain: dict[str, Any] = {"dense": Pretrain()}
    controls: dict[str, Any] = {}
    parent = control = "dense"
    for step in retrain:
        percent = f"{100 * step.sparsity:g}".replace(".", "_")
        pruned, trained = f"one_shot_{percent}", f"trained_{percent}"
        chain[pruned] = Prune(parent=parent, sparsity=step.sparsity)
        chain[trained] = _retrain(pruned, step.steps, step.peak)
        name = "dense_control" if step is retrain[-1] else f"dense_control_{percent}"
        controls[name] = _retrain(control, step.steps, step.control_peak)
        parent, control = trained, name
    chain |= controls
    chain["one_shot"] = OneShot(parent="dense")
    chain["export"] = Export(parent=parent)
    return {"stages": chain, "order": tuple(chain), "final": parent}


def _retrain(parent: str, steps: int, peak: float) -> Pretrain:
    return Pretrain(parent=parent, steps=steps, peak=peak, warmup_steps=0)


def embedded(name: str, *retrain: Retrain) -> Recipe:
    """A small model on the embedded corpus, for two CPU cores."""
    model = sizes.get("tiny")
    return Recipe(
        name=name,
        model=model,
        compute=Compute(scan_unroll=model.n_layers),
        data=DataConfig(vocab_size=model.vocab_size, heldout_limit=250_000),
        train=TrainConfig(
            steps=1100,
            batch_size=8,
            seq_len=128,
            schedule=ScheduleConfig(
                kind="linear", peak=2.5e-3, warmup_steps=50, final_ratio=0.1
            ),
        ),
        prune=PruneConfig(samples=128, sample_length=128),
        **sparse_chain(*retrain),
    )


def smoke(recipe: Recipe, *retrain: Retrain) -> Recipe:
    """Every stage of an embedded recipe for a few steps; the numbers mean nothing."""
    chain = sparse_chain(*(dataclasses.replace(step, steps=20) for step in retrain))
    return dataclasses.replace(shortened(recipe), **chain)


def shortened(recipe: Recipe) -> Recipe:
    """Fewer texts and, where a stage does not say its own, fewer steps, for CI."""
    return dataclasses.replace(
        recipe,
        name=f"{recipe.name}_smoke",
        data=dataclasses.replace(recipe.data, heldout_limit=20_000),
        train=dataclasses.replace(recipe.train, steps=20, checkpoint_every=10),
        prune=dataclasses.replace(recipe.prune, samples=16),
    )


def llama2(
    size: str, name: str, *retrain: Retrain, mesh: MeshConfig, accumulate: int
) -> Recipe:
    """A Llama 2 on web text and Python, for a pod.

    The weights come from `--config.init=DIR`, which brings its tokenizer. Batch, length
    and mixture are not published (arXiv 2405.03594); these are Llama 2's own.
    `launch/plan.py` says what it needs of a machine.
    """
    return Recipe(
        name=f"{name}_{size}",
        model=sizes.get(size),
        compute=Compute(dtype="bfloat16", remat="block"),
        mesh=mesh,
        data=DataConfig(
            sources={
                "web": SourceConfig(path="data/slimpajama/*.jsonl.gz", weight=0.9),
                "python": SourceConfig(path="data/stack_python/*.parquet", weight=0.1),
            },
            vocab_size=32_000,
        ),
        train=TrainConfig(
            steps=tokens_to_steps(2e12),
            batch_size=TOKENS_LLAMA2 // 4096,
            seq_len=4096,
            accumulate=accumulate,
            schedule=ScheduleConfig(kind="linear", peak=3e-4, final_ratio=0.0),
            checkpoint_every=500,
        ),
        prune=PruneConfig(samples=512, sample_length=2048),
        **sparse_chain(*retrain),
    )


def llama2_7b(name: str, *retrain: Retrain) -> Recipe:
    """Llama-2-7B for 256 chips of 16 GiB, such as v5e:16x16."""
    options = {"mesh": MeshConfig(fsdp=256), "accumulate": 4}
    return llama2("llama2_7b", name, *retrain, **options)


def llama2_70b(name: str, *retrain: Retrain) -> Recipe:
    """Llama-2-70B for 512 chips of 96 GiB, such as v5p:8x8x8."""
    options = {"mesh": MeshConfig(fsdp=512), "accumulate": 2}
    return llama2("llama2_70b", name, *retrain, **options)


TOKENS_LLAMA2 = 1024 * 4096
"""Tokens per step of the Llama 2 runs."""


def tokens_to_steps(tokens: float) -> int:
    """Steps of a Llama 2 run that read so many tokens."""
    return round(tokens / TOKENS_LLAMA2)


def with_small_dense(recipe: Recipe, **shape: int) -> Recipe:
    """Adds a smaller dense model, trained on as many tokens in one stage; off."""
    stages = {**recipe.stages}
    chain = ["dense", *(n for n in stages if n.startswith("trained_"))]
    steps = sum(recipe.train_config(stages[name]).steps for name in chain)
    model = dataclasses.replace(recipe.model, **shape)
    stages["small_dense"] = Pretrain(model=model, steps=steps, enabled=False)
    return dataclasses.replace(recipe, stages=stages, order=tuple(stages))


def pick(variants: dict[str | None, Any], name: str | None) -> Any:
    """The variant of a config file named after its colon.

    Raises:
      InputError: there is no such variant.
    """
    if name not in variants:
        known = [v for v in variants if v is not None]
        raise InputError(
            f"the config has no variant {name!r}; choose one of {known}, or none"
        )
    return variants[name]


def to_config(value: Any) -> ConfigDict:
    """The ConfigDict of a dataclass; flags can set fields that are None, too."""
    config = ConfigDict(convert_dict=False)
    kind = schema.kind_of(type(value))
    if kind is not None:
        config.kind = kind
    hints = typing.get_type_hints(type(value))
    for field in dataclasses.fields(value):
        item = getattr(value, field.name)
        config[field.name] = _field(item, hints[field.name])
    return config


def _field(item: Any, hint: Any) -> Any:
    if dataclasses.is_dataclass(item):
        return to_config(item)
    if isinstance(item, dict):
        config = ConfigDict()
        for name, entry in item.items():
            config[name] = _field(entry, Any)
        return config
    if item is None:
        options = [o for o in typing.get_args(hint) if o is not types.NoneType]
        scalar = options[0] if options and options[0] in (int, float, bool) else str
        return config_dict.placeholder(scalar)
    return item
