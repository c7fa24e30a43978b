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

from sparse_jax import distributed, io, train
from sparse_jax.data import Dataset
from sparse_jax.evaluate import training_flops_per_token
from sparse_jax.files import read_json, read_lines, write_json, write_line
from sparse_jax.prune import PruneConfig, PrunedModel, prune
from sparse_jax.recipe import ask, inputs, measure, packing, training
from sparse_jax.recipe.config import Recipe
from sparse_jax.recipe.finish import Made, finish
from sparse_jax.recipe.stage_kinds import (
    Evaluate,
    Export,
    Finetune,
    Init,
    OneShot,
    Pack,
    Pretrain,
    Prune,
    Stage,
)
from sparse_jax.sparsity import adapters

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
        Pack: packing.run,
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
    made = Made.of_model(found, params)
    return finish(stage, context, directory, config, made, parent)


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
        quantize=stage.quantize,
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
    ended = training.end(state, stage.quantize)
    if made.whole:
        ended = ended._replace(masks=None)
    result = finish(stage, context, directory, model, ended, seen)
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
    inputs.refuse_grids(found, parent_dir)
    with context.bar(name, found.config.n_layers, "block") as bar:

        def advance(done: int, _: int) -> None:
            bar.update(done - bar.n)
            train.stop_if_asked(name)

        pruned = _run_prune(stage, context, config, found, params, advance)
    made = Made.of_pruning(pruned, config.quantize)
    result = finish(stage, context, directory, found.config, made, parent)
    return result | {"matrices": pruned.rows}


def _run_prune(
    stage, context, config: PruneConfig, found: io.Model, params, progress=None
) -> PrunedModel:
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
    inputs.refuse_grids(found, parent_dir)
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
            pruned = _run_prune(stage, context, config, found, dense)
            row = {
                "method": config.solver,
                "sparsity": config.sparsity,
                **measure.sparsity(pruned.params, pruned.masks),
                "domains": measure.heldout(
                    context.recipe,
                    context.dataset,
                    found.config,
                    pruned.params,
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
        grids=found.grids,
        activations=found.activations,
        adapter=found.adapter,
        tokenizer_files=context.dataset.tokenizer.files,
        dtype=stage.dtype,
        overwrite=True,
    )
    return {"dtype": stage.dtype, **measure.sparsity(params, found.masks)}
