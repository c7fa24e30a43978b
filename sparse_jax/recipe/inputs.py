"""What a stage begins with, on the mesh in use: a model, masks, batches."""

import dataclasses
import pathlib
from collections.abc import Iterator

import jax
import jax.numpy as jnp

from sparse_jax import io, mesh, models
from sparse_jax.data import Dataset
from sparse_jax.quant import Grids
from sparse_jax.recipe.config import Recipe
from sparse_jax.recipe.stage_kinds import Finetune, Pretrain
from sparse_jax.sparsity import adapters
from sparse_jax.sparsity.masks import make_masks
from sparse_jax.tree import Rules
from sparse_jax.types import Batch, InputError, Masks, Params


def load(path: str | pathlib.Path) -> tuple[io.Model, Params]:
    """A model and its weights, on the mesh in use."""
    found = io.resolve(path, mesh.current())
    if found.params is None:
        raise InputError(f"init: {path} is a size without weights; name a model")
    return found, found.params


def refuse_adapter(found: io.Model, path: str | pathlib.Path) -> None:
    """Raises InputError for a model with low-rank factors, which pruning would drop."""
    if found.adapter:
        raise InputError(
            f"{path}: the model has low-rank factors beside its matrices, which this "
            "stage cannot take; give it a parent without low_rank"
        )


def refuse_grids(found: io.Model, path: str | pathlib.Path) -> None:
    """Raises InputError for a quantised model, whose codes would be lost."""
    if found.grids:
        raise InputError(
            f"{path}: the model is quantised already, and would lose its codes; give "
            "this stage a parent in floats"
        )


def start(
    stage: Pretrain, recipe: Recipe, parent_dir: pathlib.Path | None
) -> tuple[models.LlamaConfig, Params, Masks | None, Grids | None]:
    """The parent's model, its low-rank factors attached, or random weights.

    Raises:
      InputError: the stage would leave the grids of a quantised parent.
    """
    if parent_dir is None:
        model = stage.model or recipe.model
        return model, _random_params(recipe.seed, model), None, None
    found, params = load(parent_dir)
    if found.grids and stage.quantize is None:
        raise InputError(
            f"{parent_dir}: the model is quantised, and training would leave its "
            "grids; set quantize, with start 'parent' to keep them"
        )
    if not found.adapter:
        return found.config, params, found.masks, found.grids
    if any(path.endswith(adapters.OUTLIERS) for path in found.adapter):
        raise InputError(
            f"{parent_dir}: the model has outliers beside its matrices, which cannot "
            "train; give this stage a parent without outliers"
        )
    params = adapters.attach(params, found.adapter)
    masks = adapters.masks_of(params, found.masks or {})
    return found.config, params, masks, found.grids


def _random_params(seed: int, model: models.LlamaConfig) -> Params:
    """Random weights; every device makes its own part of them."""
    shardings = mesh.shardings(mesh.current(), models.abstract_params(model))
    init = jax.jit(models.init, static_argnums=1, out_shardings=shardings)
    return init(jax.random.key(seed), model)


def with_length(
    config: models.LlamaConfig, max_seq_len: int | None
) -> models.LlamaConfig:
    """The architecture, for sequences at least so long."""
    length = max(config.max_seq_len, max_seq_len or 0)
    return dataclasses.replace(config, max_seq_len=length)


def whole_masks(params: Params, rules: Rules) -> Masks:
    """Masks that keep everything, each where its weight is."""
    shapes = jax.eval_shape(lambda tree: make_masks(tree, rules), params)
    return jax.tree.map(
        lambda mask, sharding: jnp.ones(mask.shape, bool, device=sharding),
        shapes,
        mesh.shardings(mesh.current(), shapes),
    )


def example_counts(
    recipe: Recipe, stage: Finetune, dataset: Dataset
) -> dict[str, dict[str, int]]:
    """What became of the training examples of each task, see `data.Plan`."""
    length = recipe.train_config(stage).seq_len
    found = {name: dataset.examples(name) for name in recipe.sources(stage)}
    return {n: e.plan(length).counts for n, e in found.items() if e is not None}


def batches(
    recipe: Recipe, stage: Pretrain, dataset: Dataset, start_step: int = 0
) -> Iterator[Batch]:
    """The part of a stage's batches that this process feeds to its devices."""
    config = recipe.train_config(stage)
    index, count = mesh.batch_share(mesh.current())
    return dataset.batches(
        batch_size=config.batch_size,
        seq_len=config.seq_len,
        seed=recipe.seed if stage.seed is None else stage.seed,
        sources=recipe.sources(stage),
        isolate_documents=recipe.isolates_documents(stage),
        start_step=start_step,
        process_index=index,
        process_count=count,
    )
