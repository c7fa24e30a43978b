"""Whose a working directory is, and what must agree with what is finished there."""

import dataclasses
import json
import shutil

import pytest

from sparse_jax import recipe as recipe_lib
from sparse_jax.recipe import Export, Pretrain, Prune, workdir
from sparse_jax.types import InputError
from tests.recipe import helpers


def run(recipe, directory, **options):
    return recipe_lib.run(recipe, directory, quiet=True, **options)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (lambda r: helpers.replace(r, "train", batch_size=8), "train.batch_size = 4"),
        (lambda r: helpers.replace(r, "data", seed=3), "data.seed = 0"),
        (lambda r: helpers.replace(r, "evaluate", window=16), "evaluate.window = 32"),
        (lambda r: dataclasses.replace(r, seed=5), "seed = 0"),
    ],
)
def test_a_changed_field_is_named(copy, recipe, change, field):
    before = helpers.contents(copy)
    with pytest.raises(
        InputError,
        match=rf"dense: the stage was finished with dense\.{field}, the config now "
        r"says \d+; undo the change, or add --restart_from=dense",
    ):
        run(change(recipe), copy)
    assert helpers.contents(copy) == before


def test_a_field_of_a_later_stage_leaves_earlier_ones_alone(copy, recipe):
    changed = helpers.replace_stage(recipe, "one_shot_70", sparsity=0.75)
    with pytest.raises(
        InputError, match=r"one_shot_70\.prune\.sparsity = 0\.7, .* now says 0\.75"
    ):
        run(changed, copy)


def test_fields_that_cannot_change_a_result_may_change(copy, recipe):
    run(helpers.replace(recipe, "train", checkpoint_every=3, keep_checkpoints=1), copy)


def test_a_changed_config_of_a_stage_that_has_only_begun(copy, recipe):
    (copy / "trained_70" / "result.json").unlink()
    changed = helpers.replace_stage(recipe, "trained_70", peak=1.0)
    with pytest.raises(InputError, match=r"stage was begun with .*peak = 0\.01"):
        run(changed, copy)


def test_restarting_gives_the_same_again_and_loses_nothing(copy, finished, recipe):
    report = run(recipe, copy, restart_from="one_shot_70")
    assert helpers.without_rates(report) == helpers.without_rates(
        json.loads((finished / "report.json").read_text())
    )
    found = helpers.contents(copy)
    aside = {k: v for k, v in found.items() if k.startswith("replaced/0/")}
    assert {k: v for k, v in found.items() if k not in aside} == helpers.contents(
        finished
    )
    moved = {name.split("/")[2] for name in aside}
    assert moved == {"one_shot_70", "trained_70", "export"}
    run(recipe, copy, restart_from="export")
    assert [p.name for p in (copy / "replaced" / "1").iterdir()] == ["export"]


def test_a_stage_whose_parent_is_gone_is_not_kept_silently(copy, recipe):
    shutil.rmtree(copy / "trained_50")
    with pytest.raises(InputError, match=r"was made from trained_50, which is not"):
        run(recipe, copy)
    run(recipe, copy, restart_from="trained_50")
    assert (copy / "replaced" / "0" / "trained_70").is_dir()


def test_restarting_with_an_earlier_stage_changed_moves_nothing(copy, recipe):
    changed = dataclasses.replace(recipe, seed=5)
    with pytest.raises(InputError, match="add --restart_from=dense"):
        run(changed, copy, restart_from="trained_70")
    assert not (copy / "replaced").exists()


def test_restarting_an_unknown_stage(copy, recipe):
    with pytest.raises(InputError, match=r"--restart_from=dens: .* choose one of"):
        run(recipe, copy, restart_from="dens")


def test_a_workdir_of_another_recipe(copy, recipe):
    before = helpers.contents(copy)
    with pytest.raises(
        InputError, match="belongs to the recipe 'tiny', not to 'other'; choose another"
    ):
        run(dataclasses.replace(recipe, name="other"), copy)
    assert helpers.contents(copy) == before


def test_a_directory_with_something_else_in_it(tmp_path, recipe):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match=r"is not empty and holds no recipe\.json"):
        run(recipe, tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_file_and_a_place_that_cannot_be_written(tmp_path, recipe):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(InputError, match="file: is a file; choose another --workdir"):
        run(recipe, tmp_path / "file")
    with pytest.raises(InputError, match="cannot be written"):
        run(recipe, tmp_path / "file" / "below")
    with pytest.raises(InputError, match=r"/proc/none: cannot be written"):
        run(recipe, "/proc/none")


def test_two_processes_at_once(copy, recipe):
    with (
        workdir.open_workdir(copy, recipe),
        pytest.raises(InputError, match="another process is working on it"),
    ):
        run(recipe, copy)


def test_changed_data(copy, recipe, corpus):
    file = corpus / "prose.jsonl"
    before = file.read_bytes()
    try:
        with file.open("a") as more:
            more.write(json.dumps({"text": "a new document " * 9}) + "\n")
        with pytest.raises(InputError, match=r"finished with dense\.corpus\.prose = '"):
            run(recipe, copy)
    finally:
        file.write_bytes(before)


def test_a_damaged_result_says_what_to_do(copy, recipe):
    (copy / "dense" / "result.json").write_text("{")
    with pytest.raises(
        InputError, match=r"result\.json: cannot be read as JSON .*--restart_from"
    ):
        run(recipe, copy)


@pytest.mark.parametrize(
    ("order", "stages", "message"),
    [
        (("a",), {"a": Pretrain(), "b": Pretrain()}, "order must name every stage"),
        (("a", "a"), {"a": Pretrain()}, "order must name every stage"),
        (("a", "b"), {"a": Prune(parent="b"), "b": Pretrain()}, "stages.a.parent must"),
        (("b",), {"b": Export(parent="none")}, "stages.b.parent must be an enabled"),
        (("../a",), {"../a": Pretrain()}, "name is a folder"),
        (("a",), {"a": Pretrain(enabled=False)}, "final must be an enabled stage"),
        (("b",), {"b": Pretrain()}, "final must be an enabled stage, .* got 'a'"),
    ],
)
def test_stages_that_do_not_make_a_chain(recipe, order, stages, message):
    with pytest.raises(InputError, match=message):
        dataclasses.replace(recipe, order=order, stages=stages, final="a")


def test_a_disk_that_fills_up_loses_nothing(copy, finished, recipe, monkeypatch):
    """ENOSPC at the result of a stage; with space again the run ends as if never."""
    shutil.rmtree(copy / "export")

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("sparse_jax.files.os.replace", full)
        with pytest.raises(
            InputError, match=r"recipe\.json: cannot be written \(No space left"
        ):
            run(recipe, copy)
    run(recipe, copy)
    helpers.assert_same(copy, finished)
