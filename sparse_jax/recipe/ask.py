"""The stage that asks a model tasks."""

import jax

from sparse_jax import mesh, train
from sparse_jax.evaluate import LanguageModel, run_tasks
from sparse_jax.evaluate.tasks import files, get
from sparse_jax.files import read_lines, write_line
from sparse_jax.mesh import MeshConfig
from sparse_jax.recipe.stage_kinds import Evaluate
from sparse_jax.types import InputError


def check(stage: Evaluate) -> None:
    """Raises InputError for a task that is not known, or whose file is not there."""
    if jax.process_count() > 1:
        raise InputError(
            "evaluate stages run in one process; set enabled=False and ask the model "
            "with launch/evaluate.py afterwards"
        )
    for name in stage.tasks:
        task = get(name)
        task.require()
        files.find(name, task, stage.data_dir)


def run(name, stage, context, parent_dir, parent, directory):
    """Every task is kept as soon as it is done; a restart goes on after the last."""
    rows = read_lines(directory / "rows.jsonl")
    todo = stage.tasks[len(rows) :]
    # Of a mesh of several devices one writes; all would wait for each token.
    with jax.set_mesh(mesh.make_mesh(MeshConfig())):
        model = LanguageModel(parent_dir, compute=context.recipe.compute)
        with context.bar(name, len(todo), "task") as bar:
            for result in run_tasks(model, todo, stage.data_dir, stage.harness):
                row = {"model": stage.parent, **result.numbers()}
                write_line(directory / "rows.jsonl", row)
                rows.append(row)
                bar.update()
                train.stop_if_asked(name)
    return {"scores": rows}
