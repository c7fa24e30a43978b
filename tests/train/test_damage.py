"""Every kind of damage to a checkpoint: recovered from, or refused with a name."""

import re
import shutil

import jax
import pytest

from benchmarks import damage
from sparse_jax import train
from sparse_jax.train import checksums
from sparse_jax.types import InputError


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "checkpoints"
    damage.write_checkpoints(folder)
    return folder


@pytest.fixture
def folder(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "checkpoints")


def test_there_are_many_kinds():
    assert len(damage.DAMAGES) >= 12
    for targets, _, expected in damage.DAMAGES.values():
        assert targets and expected in ("12", "8", "4", "refused")


@pytest.mark.parametrize("name", damage.DAMAGES)
def test_damage(name, whole):
    row = damage.meet(name, whole)
    assert row["used"] == row["expected"]
    assert row["lost"] == []
    targets, _, _ = damage.DAMAGES[name]
    damaged = row["used"] != damage.NEWEST and name != "checkpoint missing"
    assert bool(row["said"]) == damaged
    if damaged:
        # Every checkpoint by its step, with the path of a file in it.
        for target in targets.split():
            step, _, path = target.partition("/")
            path = re.sub("^DATA$", "state/ocdbt.process_0/d/", path)
            assert re.search(rf"checkpoint {step} is damaged \({path}", row["said"])
    if row["used"] == damage.REFUSED:
        assert "none of the checkpoints is whole" in row["said"]
        assert "--restart_from" in row["said"]


def test_what_was_left_half_written_is_cleared(folder):
    damage.abandon(folder / "12")
    train.Checkpoints(folder, keep=1).close()
    assert sorted(p.name for p in folder.iterdir()) == ["12", "4", "8"]


def test_a_second_damaged_checkpoint_of_a_step_is_set_aside_too(folder, whole):
    for _ in range(2):
        damage.flip(damage.data_file(folder / "12"))
        with train.Checkpoints(folder) as checkpoints:
            _, meta = checkpoints.restore(damage.first_state())
        assert meta == {"step": 8}
        shutil.copytree(whole / "12", folder / "12")
    assert sorted(p.name for p in (folder / "damaged").iterdir()) == ["12", "12_"]


def test_another_models_checkpoint_is_refused_by_leaf_and_stays(folder):
    other = jax.eval_shape(damage.first_state)
    other.params["layers"]["mlp"]["up"]["kernel"] = jax.ShapeDtypeStruct(
        (2, 32, 96), "float32"
    )
    with (
        train.Checkpoints(folder) as checkpoints,
        pytest.raises(
            InputError,
            match=r"12: params/layers/mlp/up/kernel is float32\[2, 32, 64\], this run "
            r"needs float32\[2, 32, 96\]: the checkpoint is of another model",
        ),
    ):
        checkpoints.restore(other)
    assert not (folder / "damaged").exists()


def test_a_leaf_too_many_is_named(folder):
    other = jax.eval_shape(damage.first_state)
    other.extra["dual"] = jax.ShapeDtypeStruct((3,), "float32")
    with (
        train.Checkpoints(folder) as checkpoints,
        pytest.raises(InputError, match="12: extra/dual is not there, this run needs"),
    ):
        checkpoints.restore(other)


def test_a_checkpoint_counts_once_its_checksums_are_written(
    folder, monkeypatch, tmp_path
):
    """A full disk that has room for the arrays, but not for the list."""

    def full(directory):
        raise InputError(f"{directory}: cannot be written (No space left on device)")

    with monkeypatch.context() as patch:
        patch.setattr(checksums, "write", full)
        checkpoints = train.Checkpoints(folder, keep=3)
        checkpoints.save(16, damage.make_state(16), {"step": 16})
        with pytest.raises(InputError, match="No space left"):
            checkpoints.close()
    with train.Checkpoints(folder, keep=3) as checkpoints:
        assert checkpoints.steps() == [4, 8, 12]
        assert checkpoints.restore(damage.first_state())[1] == {"step": 12}


def test_each_reader_checks_its_part(folder):
    damage.flip(damage.data_file(folder / "12"))
    found = [checksums.problem(folder / "12", part=i, parts=3) for i in range(3)]
    assert sum(problem is not None for problem in found) == 1
    damage.empty(folder / "12" / "checksums.json")
    found = [checksums.problem(folder / "12", part=i, parts=3) for i in range(3)]
    assert all(problem.startswith("checksums.json") for problem in found)


def test_checkpoints_out_of_schedule_stay_until_they_are_old(tmp_path):
    with train.Checkpoints(
        tmp_path, keep=2, scheduled=lambda step: step % 4 == 0
    ) as checkpoints:
        for step, left in ((4, [4]), (5, [4, 5]), (6, [4, 5, 6]), (8, [4, 5, 6, 8])):
            checkpoints.save(step, damage.make_state(step), {"step": step})
            checkpoints.wait()
            assert checkpoints.steps() == left
        checkpoints.save(12, damage.make_state(12), {"step": 12})
        checkpoints.wait()
        assert checkpoints.steps() == [8, 12]
        checkpoints.save(13, damage.make_state(13), {"step": 13})
        checkpoints.remove_after(12)
        assert checkpoints.steps() == [8, 12]
