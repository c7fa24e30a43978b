"""The loop: resume bit for bit, NaN, damaged checkpoints, recompilation, rows."""

import itertools
import json

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from sparse_jax import train
from sparse_jax.sparsity.masks import violations
from sparse_jax.types import InputError
from tests.train.helpers import (
    LOSS,
    OPTIMIZER,
    config,
    make_batch,
    make_batches,
    tree_equal,
)


class Killed(Exception):
    """Stands for a kill: nothing after it runs."""


def until(steps):
    """Batches that end in a kill after so many."""

    def batches(start):
        yield from itertools.islice(make_batches(start), max(0, steps - start))
        raise Killed

    return batches


def fit(state, directory, batches=make_batches, **options):
    options = {"config": config(), "loss": LOSS} | options
    return train.fit(
        state, batches, directory=directory, name="stage", quiet=True, **options
    )[0]


@pytest.fixture
def new_state(params, masks):
    return lambda: train.init_state(params, masks, OPTIMIZER, rng=jax.random.key(1))


def rows(directory):
    return [
        {k: v for k, v in row.items() if k != "tokens_per_second"}
        for row in train.read_metrics(directory)
    ]


@pytest.mark.parametrize("killed_at", [2, 5, 11])
def test_a_killed_run_ends_bit_equal(new_state, tmp_path, killed_at):
    whole = fit(new_state(), tmp_path / "whole")
    with pytest.raises(Killed):
        fit(new_state(), tmp_path / "killed", until(killed_at))
    resumed = fit(new_state(), tmp_path / "killed")
    assert tree_equal(resumed, whole)
    assert rows(tmp_path / "killed") == rows(tmp_path / "whole")
    assert [row["step"] for row in rows(tmp_path / "whole")] == list(range(1, 13))


def test_a_finished_run_is_not_trained_again(new_state, tmp_path):
    whole = fit(new_state(), tmp_path)
    again = fit(new_state(), tmp_path, until(0))
    assert tree_equal(again, whole)


def test_only_the_newest_checkpoints_stay(new_state, tmp_path):
    fit(new_state(), tmp_path)
    with train.Checkpoints(tmp_path / "checkpoints") as checkpoints:
        assert checkpoints.steps() == [8, 12]


def test_masks_are_stored_as_bits(new_state, masks, tmp_path):
    state = fit(new_state(), tmp_path)
    assert violations(state.params, masks) == 0
    with train.Checkpoints(tmp_path / "checkpoints") as checkpoints:
        restored, meta = checkpoints.restore(jax.eval_shape(lambda: new_state()))
    stored = ocp.StandardCheckpointHandler().metadata(tmp_path / "checkpoints/12/state")
    assert tree_equal(restored.masks, masks)
    assert meta["seconds"] > 0
    kernel = stored.tree["masks"]["layers"]["mlp"]["up"]["kernel"]
    assert kernel.dtype == np.uint8 and kernel.shape == (2, 32, 8)


@pytest.mark.parametrize("damage", ["truncate", "remove"])
def test_a_damaged_newest_checkpoint_is_reported_and_passed_over(
    new_state, tmp_path, caplog, damage
):
    whole = fit(new_state(), tmp_path / "whole")
    fit(new_state(), tmp_path / "hurt")
    newest = tmp_path / "hurt" / "checkpoints" / "12"
    for file in [p for p in newest.rglob("*") if p.is_file()]:
        file.write_bytes(
            file.read_bytes()[:7]
        ) if damage == "truncate" else file.unlink()
    again = fit(new_state(), tmp_path / "hurt")
    assert tree_equal(again, whole)
    if damage == "truncate":
        assert "12 is damaged" in caplog.text
        assert (tmp_path / "hurt" / "checkpoints" / "damaged" / "12").is_dir()


def test_when_no_checkpoint_can_be_read_nothing_is_lost(new_state, tmp_path):
    fit(new_state(), tmp_path)
    for file in [p for p in (tmp_path / "checkpoints").rglob("*") if p.is_file()]:
        file.write_bytes(b"")
    with pytest.raises(InputError, match="none of the checkpoints"):
        fit(new_state(), tmp_path)
    assert len(list((tmp_path / "checkpoints" / "damaged").iterdir())) == 2


def test_nan_stops_with_the_step_and_the_last_good_checkpoint(new_state, tmp_path):
    def poisoned(start):
        for step in itertools.count(start):
            batch = make_batch(step)
            if step == 6:
                batch.loss_weights[0, 0] = np.nan
            yield batch

    with pytest.raises(
        train.TrainingDiverged,
        match=r"stage: loss nan .* step 7 .* checkpoint is step 4",
    ):
        fit(new_state(), tmp_path, poisoned)
    assert [row["step"] for row in rows(tmp_path)][-1] == 6
    assert json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])


def test_a_nan_that_meets_a_checkpoint_is_not_saved(new_state, tmp_path):
    def poisoned(start):
        for step in itertools.count(start):
            batch = make_batch(step)
            if step == 7:
                batch.loss_weights[0, 0] = np.nan
            yield batch

    with pytest.raises(train.TrainingDiverged, match="checkpoint is step 4"):
        fit(new_state(), tmp_path, poisoned)


def test_a_changing_batch_shape_fails_loudly(new_state, tmp_path):
    def ragged(start):
        for step in itertools.count(start):
            yield make_batch(step, length=16 if step < 5 else 12)

    with pytest.raises(AssertionError, match="compiled inside the loop"):
        fit(new_state(), tmp_path, ragged)


def test_stages_share_one_compilation(new_state, params, tmp_path):
    fit(new_state(), tmp_path / "a")
    before = train.train_step._cache_size()
    slower = train.ScheduleConfig(kind="linear", peak=1e-3)
    fit(new_state(), tmp_path / "b", config=config(steps=6, schedule=slower))
    assert train.train_step._cache_size() == before


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("steps", 0, "train.steps must be >= 1"),
        ("accumulate", 3, "train.accumulate: 3 does not divide"),
        ("seq_len", -1, "train.seq_len must be >= 1"),
    ],
)
def test_bad_fields_are_named(field, value, message):
    with pytest.raises(InputError, match=message):
        config(**{field: value})
