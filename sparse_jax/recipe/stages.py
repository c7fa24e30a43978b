"""What each kind of stage does: read one directory, write the next, resumably.

A finished stage that makes a model holds `model/`, a Hugging Face directory in float32
with the masks and the tokenizer, and `result.json` with everything the report needs.
"""

import dataclasses
import functools
import pathlib
import time
from typing import Any

import jax
import tqdm

from sparse_jax import distributed, io, models, train
from sparse_jax.data import Dataset
from sparse_jax.evaluate import training_flops_per_token
from sparse_jax.files import read_json, read_lines, write_json, write_line
from sparse_jax.prune import PruneConfig, prune
from sparse_jax.recipe import ask, inputs, measure, training
from sparse_jax.recipe.config import Recipe
from sparse_jax.recipe.stage_kinds import (
    Evaluate,
    Export,
    Finetune,
    Init,
    OneShot,
    Pretrain,
    Prune,
    Stage,
)
from sparse_jax.sparsity import adapters
from sparse_jax.sparsity.adapters import Adapter
from sparse_jax.sparsity.masks import violations
from sparse_jax.types import InputError, Masks, Params

Result = dict[str, Any]
RESULT = "result.json"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Context:
    """What all stages of a run share.

    Attributes:
      recipe: the configuration.
      dataset: prepared data.
      quiet: no progress bars and no lines.
    """

    recipe: Recipe
    dataset: Dataset
    quiet: bool = False

    def bar(self, name: str, total: int, unit: str) -> tqdm.tqdm:
        """A progress bar with rate and time left; off unless on a terminal."""
        off = True if self.quiet or jax.process_index() else None
        return tqdm.tqdm(desc=name, total=total, unit=unit, disable=off)


def run_stage(
    name: str,
    stage: Stage,
    context: Context,
    parent_dir: pathlib.Path | None,
    directory: pathlib.Path,
) -> Result:
    """Runs a stage, or the rest of it, and writes its result.

    Args:
      name: of the stage.
      stage: its configuration.
      context: shared by all stages.
      parent_dir: the finished stage that gives the model, if any.
      directory: where the stage lives.

    Returns:
      The content of the stage's `result.json`.
    """
    runners = {
        Init: _init,
        Pretrain: _pretrain,
        Finetune: _finetune,
        Prune: _prune,
        OneShot: _one_shot,
        Evaluate: ask.run,
        Export: _export,
    }
    parent = {"tokens": 0, "data": 0}
    if parent_dir is not None:
        parent = distributed.on_lead(lambda: read_json(parent_dir / RESULT))
    started = time.monotonic()
    result = runners[type(stage)](name, stage, context, parent_dir, parent, directory)
    timing = {"seconds": time.monotonic() - started}
    result = {"name": name, "kind": stage.kind, **timing, **result}

    def write() -> Result:
        write_json(directory / RESULT, result)
        return result

    return distributed.on_lead(write)  # times, too, are the lead's


def _init(name, stage, context, parent_dir, parent, directory) -> Result:
    found, params = inputs.load(stage.path)
    config = inputs.with_length(found.config, stage.max_seq_len)
    return _finish(
        stage, context, directory, config, params, found.masks, parent, found.adapter
    )


def _pretrain(name, stage, context, parent_dir, parent, directory) -> Result:
    recipe, config = context.recipe, context.recipe.train_config(stage)
    made = training.begin(stage, recipe, directory.parent, parent["data"])
    state, seconds = train.fit(
        made.state,
        functools.partial(inputs.batches, recipe, stage, context.dataset),
        config,
        made.loss,
        directory=directory,
        name=name,
        teacher=training.teacher(stage, recipe, context.dataset, directory.parent),
        adaptive=made.adaptive,
        tokens_before=parent["tokens"],
        quiet=context.quiet,
    )
    spent = config.steps * config.tokens_per_step
    seen = {"tokens": parent["tokens"] + spent, "data": int(state.data)}
    model = made.loss.model
    flops = [
        spent * training_flops_per_token(model, config.seq_len, m)
        for m in (None, adapters.split(state.masks)[0])
    ]
    params, masks, adapter = training.end(state)
    masks = None if made.whole else masks
    result = _finish(stage, context, directory, model, params, masks, seen, adapter)
    return result | {
        "seconds": seconds,
        "tokens_per_second": spent / seconds,
        "training_flops_dense_equivalent": flops[0],
        "training_flops_nonzero": flops[1],
    }


def _finetune(name, stage, context, parent_dir, parent, directory) -> Result:
    """As `_pretrain`, on data that goes on where the last fine-tuning's ended."""
    own = parent | {"data": parent.get("finetuning_data", 0)}
    result = _pretrain(name, stage, context, parent_dir, own, directory)
    counts = inputs.example_counts(context.recipe, stage, context.dataset)
    places = {"data": parent["data"], "finetuning_data": result["data"]}
    return result | places | {"examples": counts}


def _prune(name, stage, context, parent_dir, parent, directory) -> Result:
    config = context.recipe.prune_config(stage)
    found, params = inputs.load(parent_dir)
    inputs.refuse_adapter(found, parent_dir)
    with context.bar(name, found.config.n_layers, "block") as bar:

        def advance(done: int, _: int) -> None:
            bar.update(done - bar.n)
            train.stop_if_asked(name)

        params, masks, rows = _run_prune(stage, context, config, found, params, advance)
    result = _finish(stage, context, directory, found.config, params, masks, parent)
    return result | {"matrices": rows}


def _run_prune(
    stage, context, config: PruneConfig, found: io.Model, params, progress=None
):
    tokens = context.dataset.calibration(
        config.samples,
        config.sample_length,
        config.seed,
        context.recipe.calibration_sources(stage),
    )
    return prune(
        params,
        found.masks,
        tokens,
        found.config,
        config,
        context.recipe.compute,
        progress,
    )


def _one_shot(name, stage, context, parent_dir, parent, directory) -> Result:
    """Every row is kept as soon as it is known; a restart goes on after the last."""
    found, dense = inputs.load(parent_dir)
    inputs.refuse_adapter(found, parent_dir)
    rows = distributed.on_lead(lambda: read_lines(directory / "rows.jsonl"))
    done = {(row["method"], row["sparsity"]) for row in rows}
    todo = [
        dataclasses.replace(context.recipe.prune, solver=solver, sparsity=sparsity)
        for sparsity in stage.sparsities
        for solver in stage.solvers
        if (solver, sparsity) not in done
    ]
    with context.bar(name, len(todo), "model") as bar:
        for config in todo:
            params, masks, _ = _run_prune(stage, context, config, found, dense)
            row = {
                "method": config.solver,
                "sparsity": config.sparsity,
                **measure.sparsity(params, masks),
                "domains": measure.heldout(
                    context.recipe,
                    context.dataset,
                    found.config,
                    params,
                    context.recipe.sources(stage),
                ),
            }
            distributed.on_lead(
                lambda row=row: write_line(directory / "rows.jsonl", row)
            )
            rows.append(row)
            bar.update()
            train.stop_if_asked(name)
    return {"rows": rows}


def _export(name, stage, context, parent_dir, parent, directory) -> Result:
    found, params = inputs.load(parent_dir)
    io.save(
        directory / "model",
        params,
        found.config,
        masks=found.masks,
        adapter=found.adapter,
        tokenizer_files=context.dataset.tokenizer.files,
        dtype=stage.dtype,
        overwrite=True,
    )
    return {"dtype": stage.dtype, **measure.sparsity(params, found.masks)}


def _finish(
    stage: Stage,
    context: Context,
    directory: pathlib.Path,
    config: models.LlamaConfig,
    params: Params,
    masks: Masks | None,
    seen: Result,
    adapter: Adapter | None = None,
) -> Result:
    """Evaluates and saves the stage's model."""
    if masks is not None and (broken := violations(params, masks)):
        raise AssertionError(f"{directory.name}: {broken} pruned weights are not zero")
    tokenizer = context.dataset.tokenizer
    if tokenizer.vocab_size > config.vocab_size:
        raise InputError(
            f"the tokenizer has {tokenizer.vocab_size} ids, more than the model's "
            f"vocab_size {config.vocab_size}"
        )
    io.save(
        directory / "model",
        params,
        config,
        masks=masks,
        adapter=adapter,
        tokenizer_files=tokenizer.files,
        overwrite=True,
    )
    computed = adapters.merge(params, adapter) if adapter else params
    sources = context.recipe.sources(stage)
    return {
        "tokens": seen["tokens"],
        "data": seen["data"],
        "finetuning_data": seen.get("finetuning_data", 0),
        **measure.sparsity(params, masks),
        **measure.storage(params, masks, adapter),
        "domains": measure.heldout(
            context.recipe, context.dataset, config, computed, sources
        ),
    }
