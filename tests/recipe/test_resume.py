"""Stopped anywhere and run again, a recipe ends with the same bits."""

import importlib

import pytest

from sparse_jax import recipe as recipe_lib
from sparse_jax.recipe import stages, workdir
from sparse_jax.train import loop
from tests.recipe import helpers

run_lib = importlib.import_module("sparse_jax.recipe.run")  # `run` is its function

SEAMS = (
    (loop, "to_devices"),
    (stages, "prune"),
    (stages.measure, "evaluate"),
    (stages, "write_line"),
    (stages, "write_json"),
    (stages.io, "save"),
    (workdir, "write_json"),
    (run_lib, "write_report"),
)


class Killed(BaseException):
    """Stands for a kill: no handler of the code under test takes it."""


def stop_at_every(monkeypatch, every, *, after):
    """Kills at each `every`-th call of a seam, before or after it did its work."""
    calls = []

    def counted(original):
        def call(*arguments, **options):
            calls.append(original)
            stop = len(calls) % every == 0
            if stop and not after:
                raise Killed
            result = original(*arguments, **options)
            if stop:
                raise Killed
            return result

        return call

    for module, name in SEAMS:
        monkeypatch.setattr(module, name, counted(getattr(module, name)))
    return calls


@pytest.mark.parametrize(
    ("every", "after"), [(7, False), pytest.param(9, True, marks=pytest.mark.slow)]
)
def test_a_run_stopped_again_and_again_ends_bit_equal(
    finished, recipe, tmp_path, monkeypatch, every, after
):
    calls = stop_at_every(monkeypatch, every, after=after)
    kills = 0
    while kills < 60:
        calls.clear()
        try:
            recipe_lib.run(recipe, tmp_path / "run", quiet=True)
            break
        except Killed:
            kills += 1
    assert 5 < kills < 60
    helpers.assert_same(tmp_path / "run", finished)


def test_rows_of_one_shot_are_not_computed_twice(copy, recipe, monkeypatch):
    (copy / "one_shot" / "result.json").unlink()
    rows = (copy / "one_shot" / "rows.jsonl").read_text().splitlines(keepends=True)
    (copy / "one_shot" / "rows.jsonl").write_text("".join(rows[:3]))
    pruned, prune = [], stages.prune
    monkeypatch.setattr(
        stages, "prune", lambda *a, **k: pruned.append(a[4]) or prune(*a, **k)
    )
    recipe_lib.run(recipe, copy, quiet=True)
    assert [(c.solver, c.sparsity) for c in pruned] == [("sparsegpt", 0.7)]
    assert (copy / "one_shot" / "rows.jsonl").read_text() == "".join(rows)


def test_a_run_stopped_at_its_very_start_goes_on(finished, recipe, tmp_path):
    """What a kill between the lock and recipe.json leaves is no foreign directory."""
    directory = tmp_path / "run"
    directory.mkdir()
    (directory / ".lock").touch()
    (directory / ".recipe.json.partial").write_text("{")
    with workdir.open_workdir(directory, recipe):
        assert (directory / "recipe.json").exists()


def test_a_restart_stopped_while_moving_leaves_no_orphans(
    copy, finished, recipe, monkeypatch
):
    move, moved = workdir.shutil.move, []

    def once(source, target):
        if len(moved) == 2:
            raise Killed
        moved.append(source.name)
        return move(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(workdir.shutil, "move", once)
        with pytest.raises(Killed):
            recipe_lib.run(recipe, copy, restart_from="trained_50", quiet=True)
    assert moved == ["export", "trained_70"]  # never a parent before its children
    recipe_lib.run(recipe, copy, quiet=True)
    stages_left = {
        k: v for k, v in helpers.contents(copy).items() if "replaced" not in k
    }
    assert stages_left == helpers.contents(finished)
