"""What can be known wrong with a recipe before any work starts."""

import dataclasses
import pathlib

from sparse_jax import io, mesh, models, train
from sparse_jax.data import Dataset
from sparse_jax.prune import PruneConfig
from sparse_jax.recipe import ask, packing
from sparse_jax.recipe.config import Recipe
from sparse_jax.recipe.inputs import batches, with_length
from sparse_jax.recipe.simulate import check_report
from sparse_jax.recipe.stage_kinds import (
    Evaluate,
    Init,
    OneShot,
    Pack,
    Pretrain,
    Prune,
    Stage,
)
from sparse_jax.sparsity.masks import check_rule
from sparse_jax.tree import Rules, leaf_paths, match_rules
from sparse_jax.types import InputError


def check(recipe: Recipe) -> None:
    """Raises InputError for what can be known wrong before any work starts."""
    for name, stage in recipe.enabled_stages().items():
        try:
            _check_stage(recipe, stage, root_model(recipe, name))
        except InputError as error:
            raise InputError(f"stages.{name}: {error}") from error
    check_report(recipe, root_model(recipe, recipe.final))


def _check_stage(recipe: Recipe, stage: Stage, model: models.LlamaConfig) -> None:
    model.check_length(recipe.evaluate.window)
    if isinstance(stage, Init) and stage.path in models.sizes.SIZES:
        raise InputError(f"{stage.path} is a size without weights; name a model")
    if isinstance(stage, Pretrain):
        config = recipe.train_config(stage)
        needs = mesh.batch_needs(config.batch_size, config.accumulate)
        mesh.check_here(recipe.mesh, needs | model.mesh_needs)
        model.check_length(config.seq_len)
        _check_method(recipe, stage, model, config)
    if isinstance(stage, Evaluate):
        ask.check(stage)
    if isinstance(stage, Pack):
        packing.check(stage)
    for config in _prune_configs(recipe, stage):
        model.check_length(config.sample_length)
        _check_rules(config.pattern_rules(), model)


def _prune_configs(recipe: Recipe, stage: Stage) -> list[PruneConfig]:
    """The settings of every pruning that a stage does."""
    if isinstance(stage, Prune):
        return [recipe.prune_config(stage)]
    if isinstance(stage, OneShot):
        return [
            dataclasses.replace(recipe.prune, solver=solver, sparsity=sparsity)
            for sparsity in stage.sparsities
            for solver in stage.solvers
        ]
    return []


def root_model(recipe: Recipe, name: str) -> models.LlamaConfig:
    """The architecture that a stage inherits from the root of its chain."""
    root = _root(recipe, name)
    if isinstance(root, Init):
        if root.path in models.sizes.SIZES:
            return models.sizes.get(root.path)
        directory, _ = io.locate(pathlib.Path(root.path))
        return with_length(io.load_config(directory), root.max_seq_len)
    return root.model or recipe.model


def _root(recipe: Recipe, name: str) -> Init | Pretrain:
    """The stage at the root of a stage's chain."""
    stages = recipe.enabled_stages()
    stage = stages[name]
    while stage.parent is not None:
        stage = stages[stage.parent]
    assert isinstance(stage, Init | Pretrain)  # `Recipe` gives all others a parent
    return stage


def _check_method(
    recipe: Recipe,
    stage: Pretrain,
    model: models.LlamaConfig,
    config: train.TrainConfig,
) -> None:
    """What moving masks, a decay or a teacher ask of a stage."""
    rules = recipe.mask_rules(stage)
    _check_rules(rules, model)
    config.optimizer.pruned_decay.check(config.steps)
    if stage.lora is not None:
        stage.lora.matrices(models.abstract_params(model))
    if stage.quantize is not None and stage.quantize.start != "parent":
        stage.quantize.matrices(models.abstract_params(model))
    if stage.adaptive is not None:
        stage.adaptive.check(config.steps)
        if stage.adaptive.sparsity is None and not _may_have_masks(recipe, stage):
            raise InputError(
                "adaptive.sparsity None takes over the sparsity of a pruned parent, "
                f"but {stage.parent or 'no stage'} makes no masks; set it, or prune "
                "first"
            )
        train.Adaptive.of(stage.adaptive, rules, model, recipe.compute)
    if stage.distill is not None and stage.teacher is not None:
        train.Distill(
            model=model,
            teacher_model=root_model(recipe, stage.teacher),
            config=stage.distill,
        )


def _may_have_masks(recipe: Recipe, stage: Stage) -> bool:
    """Whether a stage's parent is pruned, or read from files that may be."""
    stages = recipe.enabled_stages()
    while stage.parent is not None:
        stage = stages[stage.parent]
        if isinstance(stage, Init | Prune) or getattr(stage, "adaptive", None):
            return True
    return False


def _check_rules(rules: Rules, model: models.LlamaConfig) -> None:
    shapes = models.abstract_params(model)
    patterns = leaf_paths(match_rules(rules, shapes))
    for path, leaf in leaf_paths(shapes).items():
        check_rule(patterns[path], leaf.shape, path)


def check_data(recipe: Recipe, dataset: Dataset) -> None:
    """Raises InputError where the data does not fit the recipe's models."""
    ids = dataset.tokenizer.vocab_size
    for name, stage in recipe.enabled_stages().items():
        model = root_model(recipe, name)
        if ids > model.vocab_size:
            raise InputError(
                f"stages.{name}: the tokenizer has {ids} ids, more than the model's "
                f"vocab_size {model.vocab_size}; use the model's own tokenizer "
                "(data.tokenizer) or a larger model.vocab_size"
            )
        if isinstance(stage, Pretrain):
            next(batches(recipe, stage, dataset))
            _check_teacher(recipe, stage, dataset)
        for prune in _prune_configs(recipe, stage)[:1]:
            sources = recipe.calibration_sources(stage)
            dataset.calibration(1, prune.sample_length, prune.seed, sources)
    stages = recipe.enabled_stages().values()
    _check_heldout(recipe, dataset, {n for s in stages for n in recipe.sources(s)})


def _check_heldout(recipe: Recipe, dataset: Dataset, judged: set[str]) -> None:
    """Raises InputError where held-out documents do not fill a window."""
    window = recipe.evaluate.window
    for domain in sorted(judged):
        if dataset.heldout_examples(domain) is not None:
            continue
        found = len(dataset.heldout(domain)[0])
        if found < window:
            raise InputError(
                f"data.sources.{domain}: {found} held-out tokens are fewer than one "
                f"window of {window}; hold out more text or lower evaluate.window"
            )


def _check_teacher(recipe: Recipe, stage: Pretrain, dataset: Dataset) -> None:
    """Raises InputError where a teacher that was read from disk has other tokens."""
    root = _root(recipe, stage.teacher) if stage.teacher else None
    if not isinstance(root, Init):
        return
    # Not `io.resolve`, which would read all of the teacher's weights.
    own, used = io.open_blocks(root.path, merge=True).tokenizer, dataset.tokenizer
    if own is not None and own.fingerprint != used.fingerprint:
        raise InputError(
            f"stages.{stage.teacher}: the teacher {root.path} has its own tokenizer "
            f"({own.vocab_size} ids, sha256 {own.fingerprint[:12]}), the data another "
            f"({used.vocab_size} ids, sha256 {used.fingerprint[:12]}); set "
            "data.tokenizer to the teacher's directory, or choose another teacher"
        )
