"""Runs a recipe from its first unfinished step to its report."""

import dataclasses
import functools
import hashlib
import json
import logging
import os
import pathlib
import sys
from typing import Any

import jax

from sparse_jax import __version__, distributed, mesh, train
from sparse_jax.data import Dataset, prepare
from sparse_jax.files import read_json
from sparse_jax.recipe import workdir
from sparse_jax.recipe.check import check, check_data, root_model
from sparse_jax.recipe.config import Recipe
from sparse_jax.recipe.points import equal_bits
from sparse_jax.recipe.simulate import simulations
from sparse_jax.recipe.stage_kinds import Pretrain, Stage
from sparse_jax.recipe.stages import RESULT, Context, Result, run_stage
from sparse_jax.report import summary, write_report
from sparse_jax.schema import to_dict

logger = logging.getLogger(__name__)

_OF_MODELS = (
    "name",
    "sparsity_pruned",
    "sparsity_total",
    "tokens",
    "parameters",
    "domains",
    "adapter_parameters",
    "bits_per_weight",
    "examples",
    "seconds",
    "tokens_per_second",
    "training_flops_dense_equivalent",
    "training_flops_nonzero",
)
"""Fields of a stage's result that the report has of every model."""


def run(
    recipe: Recipe,
    directory: str | os.PathLike[str],
    *,
    restart_from: str | None = None,
    quiet: bool = False,
) -> dict[str, Any]:
    """Runs what is left of a recipe and writes its report; called by every process.

    Called again after any interruption it goes on at the first unfinished step, and
    ends with the same files, bit for bit, as a run that never stopped (times and rates
    apart).

    Args:
      recipe: what to do.
      directory: the working directory; one folder per stage, and the report.
      restart_from: a stage to do again, with all that descend from it.
      quiet: no progress bars, no lines, no summary.

    Returns:
      The content of report.json.

    Raises:
      InputError: anything about the config, the data or the directory that a user can
        put right; raised before any training where it can be known then.
    """
    directory = pathlib.Path(os.path.abspath(directory))
    quiet = quiet or not distributed.is_lead()
    distributed.check_same(to_dict(recipe), "config")
    place = {"workdir": str(directory), "restart_from": restart_from}
    distributed.check_same(place, "flag")
    distributed.everywhere(lambda: check(recipe))
    devices = mesh.make_mesh(recipe.mesh)
    again = workdir.descendants(recipe, restart_from) if restart_from else []
    with workdir.open_workdir(directory, recipe):
        with jax.set_mesh(devices):
            dataset = _prepare(recipe, quiet)
            check_data(recipe, dataset)
            distributed.on_lead(lambda: _settle(directory, recipe, dataset, again))
            context = Context(recipe=recipe, dataset=dataset, quiet=quiet)
            results = _run_stages(context, directory)
        # Outside the mesh, on which the lead alone could compute nothing.
        report = distributed.on_lead(lambda: _report(context, directory, results))
    if not quiet:
        print(summary(report))
        print(f"report: {directory / 'report.md'}")
    return report


def _prepare(recipe: Recipe, quiet: bool) -> Dataset:
    """The data; the lead reads it first, the others find what it has cached."""
    made: list[Dataset] = []

    def make() -> None:
        if not made:
            made.append(prepare(recipe.data_config(), progress=not quiet))

    distributed.on_lead(make)
    distributed.everywhere(make)
    distributed.check_same(made[0].fingerprint, "data")
    return made[0]


def _settle(
    directory: pathlib.Path, recipe: Recipe, dataset: Dataset, again: list[str]
) -> None:
    """Checks what the directory holds, and moves aside what is done again."""
    workdir.check_stages(directory, recipe, dataset.fingerprint, but=again)
    workdir.set_aside(directory, again)
    workdir.record(directory, recipe)


def _run_stages(context: Context, directory: pathlib.Path) -> dict[str, Result]:
    recipe, results = context.recipe, {}
    for name, stage in recipe.enabled_stages().items():
        train.stop_if_asked(f"before {name}")
        path = directory / name
        parent = directory / stage.parent if stage.parent else None
        begin = functools.partial(_begin, path, recipe, stage, context.dataset)
        results[name] = distributed.on_lead(begin)
        if results[name] is not None:
            continue
        results[name] = run_stage(name, stage, context, parent, path)
        if not context.quiet and not isinstance(stage, Pretrain):
            seconds = results[name]["seconds"]
            print(f"{name}: {stage.kind}, {seconds:.1f} s", file=sys.stderr, flush=True)
    return results


def _begin(
    directory: pathlib.Path, recipe: Recipe, stage: Stage, dataset: Dataset
) -> Result | None:
    """The result of a stage that has finished; else records what it begins with."""
    if (directory / RESULT).exists():
        return read_json(directory / RESULT)
    workdir.begin_stage(directory, recipe, stage, dataset.fingerprint)
    return None


def _report(
    context: Context, directory: pathlib.Path, results: dict[str, Result]
) -> dict[str, Any]:
    """Assembles the report from the stages' results and metrics."""
    recipe, fingerprint = context.recipe, context.dataset.fingerprint
    rows = {name: r for name, r in results.items() if "tokens" in r}
    histories = {
        name: [*train.read_metrics(directory / name), _heldout_row(result)]
        for name, result in rows.items()
        if result["kind"] in ("pretrain", "finetune")
    }
    report = {
        "name": recipe.name,
        "python": fingerprint["python"],
        "versions": {"sparse_jax": __version__, "jax": jax.__version__},
        "config_sha256": _sha256(recipe),
        "corpus": fingerprint["corpus"],
        "data": {k: fingerprint[k] for k in ("tokenizer", "sources")},
        "model": to_dict(root_model(recipe, recipe.final)),
        "calibration": {
            "text": "training text of all domains, mixed by weight",
            "sequences": recipe.prune.samples,
            "length": recipe.prune.sample_length,
            "seed": recipe.prune.seed,
        },
        "evaluation": to_dict(recipe.evaluate) | {"stride": recipe.evaluate.window},
        "models": [{k: r[k] for k in _OF_MODELS if k in r} for r in rows.values()],
        "one_shot": [
            {k: v for k, v in row.items() if k != "layers"}
            for result in results.values()
            if result["kind"] == "one_shot"
            for row in result["rows"]
        ],
        "scores": [
            row for result in results.values() for row in result.get("scores", [])
        ],
        "packed": [
            result["packed"] | {"paper": recipe.report.paper.get(name)}
            for name, result in results.items()
            if "packed" in result
        ],
        "equal_bits": equal_bits(recipe, results),
        "finetuned": any(r["kind"] == "finetune" for r in results.values()),
        "layers": {
            name: result["layers"] for name, result in rows.items() if result["layers"]
        },
        "dataflow": simulations(recipe, directory),
        "comparisons": [
            {"question": c.question, "with": c.method, "without": c.baseline}
            for c in recipe.report.comparisons
        ],
    }
    return write_report(report, histories, directory)


def _sha256(recipe: Recipe) -> str:
    """Of everything in the config, but for where data is cached."""
    config = dataclasses.replace(
        recipe, data=dataclasses.replace(recipe.data, cache_dir=None)
    )
    return hashlib.sha256(json.dumps(to_dict(config)).encode()).hexdigest()


def _heldout_row(result: Result) -> dict[str, Any]:
    losses = {f"heldout/{d}": n["loss"] for d, n in result["domains"].items()}
    return {"tokens": result["tokens"], **losses}
