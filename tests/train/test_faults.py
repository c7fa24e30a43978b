"""The loop in trouble: SIGTERM, losses that go wrong, transfers nobody asked for."""

import dataclasses
import itertools
import os
import signal
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparse_jax import mesh, train
from sparse_jax.train import divergence, stopping
from sparse_jax.types import InputError
from tests.train.helpers import (
    LOSS,
    OPTIMIZER,
    config,
    make_batch,
    make_batches,
    tree_equal,
)

SKIP = train.DivergenceConfig(action="skip", window=3, max_rollbacks=2)


class Killed(Exception):
    """Stands for a kill: nothing after it runs."""


def poisoned(*bad, weight=np.nan, killed_at=None, sigterm_at=None):
    """Batches of which some positions carry a weight that spoils the loss.

    A batch is a kill or brings SIGTERM when it is the n-th drawn, over all rollbacks.
    """
    draws = itertools.count(1)

    def batches(start):
        for position in itertools.count(start):
            drawn = next(draws)
            if drawn == killed_at:
                raise Killed
            if drawn == sigterm_at:
                os.kill(os.getpid(), signal.SIGTERM)
            batch = make_batch(position)
            if position in bad:
                batch.loss_weights[0, 0] = weight
            yield batch

    return batches


@pytest.fixture
def new_state(params, masks):
    return lambda: train.init_state(params, masks, OPTIMIZER, rng=jax.random.key(1))


def fit(state, directory, batches=make_batches, loss=LOSS, **fields):
    return train.fit(
        state,
        batches,
        config(**fields),
        loss,
        directory=directory,
        name="stage",
        quiet=True,
    )[0]


def rows(directory):
    return [
        {k: v for k, v in row.items() if k != "tokens_per_second"}
        for row in train.read_metrics(directory)
    ]


def meta_of(directory, like):
    with train.Checkpoints(directory / "checkpoints") as checkpoints:
        return {k: v for k, v in checkpoints.restore(like)[1].items() if k != "seconds"}


def test_sigterm_saves_the_step_and_the_run_goes_on_bit_equal(new_state, tmp_path):
    whole = fit(new_state(), tmp_path / "whole")
    with (
        train.listen_for_sigterm(),
        pytest.raises(
            train.Interrupted,
            match=r"stage: saved after step 6, stopped by SIGTERM; run the same",
        ),
    ):
        fit(new_state(), tmp_path / "run", poisoned(sigterm_at=6))
    assert [row["step"] for row in rows(tmp_path / "run")] == [1, 2, 3, 4, 5, 6]
    with train.Checkpoints(tmp_path / "run" / "checkpoints") as checkpoints:
        assert checkpoints.steps() == [4, 6]
    resumed = fit(new_state(), tmp_path / "run")
    assert tree_equal(resumed, whole)
    assert rows(tmp_path / "run") == rows(tmp_path / "whole")
    with train.Checkpoints(tmp_path / "run" / "checkpoints") as checkpoints:
        assert checkpoints.steps() == [8, 12]


def test_a_second_sigterm_changes_nothing(new_state, tmp_path, monkeypatch):
    """It comes while the first one's checkpoint is written."""
    save = train.Checkpoints.save

    def interrupted(*arguments):
        save(*arguments)
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(train.Checkpoints, "save", interrupted)
    with train.listen_for_sigterm():
        with pytest.raises(train.Interrupted):
            fit(new_state(), tmp_path, poisoned(sigterm_at=2))
        with pytest.raises(train.Interrupted, match="prune: stopped by SIGTERM"):
            train.stop_if_asked("prune")
    with train.Checkpoints(tmp_path / "checkpoints") as checkpoints:
        assert checkpoints.steps() == [2]
        assert checkpoints.restore(new_state()) is not None


def test_without_sigterm_nothing_stops():
    before = signal.getsignal(signal.SIGTERM)
    with train.listen_for_sigterm():
        train.stop_if_asked("prune")
        assert signal.getsignal(signal.SIGTERM) is not before
    assert signal.getsignal(signal.SIGTERM) is before


def test_the_poll_of_several_processes_is_one_step_late(monkeypatch):
    poll = stopping.StopPoll()
    with jax.set_mesh(mesh.make_mesh()), monkeypatch.context() as patch:
        patch.setattr(stopping.jax, "process_count", lambda: 2)
        patch.setattr(stopping.jax, "default_backend", lambda: "tpu")
        assert not poll()
        patch.setattr(stopping, "_asked", asked := threading.Event())
        asked.set()
        assert not poll()  # the answer to the question before
        assert poll()


def test_a_bad_batch_is_skipped(new_state, tmp_path, caplog):
    batches = poisoned(6, weight=np.inf)
    state = fit(new_state(), tmp_path / "run", batches, divergence=SKIP)
    # Batch 6 makes step 7; back to step 4 and on with batch 7.
    assert int(state.step) == 12 and int(state.data) == 15
    assert "not finite; going on from step 4 without batches 4 to 6" in caplog.text
    found = rows(tmp_path / "run")
    assert [row["step"] for row in found] == list(range(1, 13))
    assert [row["rollbacks"] for row in found] == [0] * 4 + [1] * 8
    assert [row["skipped_batches"] for row in found] == [0] * 4 + [3] * 8

    # As a run that never saw batches 4 to 6.
    def without(start):
        for position in itertools.count(start):
            yield make_batch(position if position < 4 else position + 3)

    plain = fit(new_state(), tmp_path / "plain", without)
    assert tree_equal(state.params, plain.params) and tree_equal(state.opt, plain.opt)


@pytest.mark.parametrize("killed_at", [2, 9, 12])
def test_a_killed_run_skips_the_same_batches(new_state, tmp_path, killed_at):
    bad = (2, 9)
    whole = fit(new_state(), tmp_path / "whole", poisoned(*bad), divergence=SKIP)
    with pytest.raises(Killed):
        fit(
            new_state(),
            tmp_path / "run",
            poisoned(*bad, killed_at=killed_at),
            divergence=SKIP,
        )
    again = fit(new_state(), tmp_path / "run", poisoned(*bad), divergence=SKIP)
    assert tree_equal(again, whole)
    assert rows(tmp_path / "run") == rows(tmp_path / "whole")
    like = jax.eval_shape(new_state)
    found = meta_of(tmp_path / "whole", like)
    assert meta_of(tmp_path / "run", like) == found
    assert [
        (r["bad_step"], r["to_step"], r["data_before"], r["data_after"])
        for r in found["rollbacks"]
    ] == [(3, 0, 0, 3), (7, 4, 7, 10)]


def test_an_interrupted_run_skips_the_same_batches(new_state, tmp_path):
    """SIGTERM's own checkpoint is newer than the scheduled one, and is passed by."""
    whole = fit(new_state(), tmp_path / "whole", poisoned(6), divergence=SKIP)
    for drawn in (6, 1):  # at step 6, and at once again
        with train.listen_for_sigterm(), pytest.raises(train.Interrupted):
            fit(
                new_state(),
                tmp_path / "run",
                poisoned(6, sigterm_at=drawn),
                divergence=SKIP,
            )
    again = fit(new_state(), tmp_path / "run", poisoned(6), divergence=SKIP)
    assert tree_equal(again, whole)
    assert rows(tmp_path / "run") == rows(tmp_path / "whole")


def test_too_many_bad_batches_stop_the_run(new_state, tmp_path):
    with pytest.raises(
        train.TrainingDiverged,
        match=r"loss nan .* at step 7 are not finite after 2 rollbacks; the last good "
        r"checkpoint is step 4",
    ):
        fit(new_state(), tmp_path, poisoned(6, 9, 12, 15), divergence=SKIP)


@dataclasses.dataclass(frozen=True)
class Leap:
    """A loss that is as much too large as the weight of its batch's first token."""

    def __call__(self, params, batch, teacher=None):
        result = LOSS(params, batch, teacher)
        return result._replace(total=result.total * batch.loss_weights[0, 0])


@pytest.mark.parametrize(
    ("factor", "at", "stops"), [(6, 5, True), (2, 5, False), (6, 1, False)]
)
def test_a_loss_that_leaps_stops_the_run(new_state, tmp_path, factor, at, stops):
    """Not a small leap, and not one before the window is full."""
    batches = poisoned(at, weight=factor)
    options = {"loss": Leap(), "divergence": train.DivergenceConfig(window=3)}
    if not stops:
        fit(new_state(), tmp_path, batches, **options)
        return
    with pytest.raises(
        train.TrainingDiverged, match=r"at step 6 is more than 3 times 4\.\d+, the"
    ):
        fit(new_state(), tmp_path, batches, **options)


def test_the_window_of_losses_survives_a_kill(new_state, tmp_path):
    fit(new_state(), tmp_path, divergence=train.DivergenceConfig(window=3))
    losses = [row["loss"] for row in rows(tmp_path)]
    assert meta_of(tmp_path, new_state())["losses"] == losses[-3:]


def test_equal_losses_are_no_leap_and_none_switches_it_off():
    watch = divergence.LossWatch(train.DivergenceConfig(window=2), [1.0, 1.0])
    assert watch.problem(3, {"loss": 3.0}) is None
    assert watch.losses == [1.0, 3.0]
    off = train.DivergenceConfig(window=2, spike_factor=None)
    assert divergence.LossWatch(off, [1.0, 1.0]).problem(3, {"loss": 1e6}) is None


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("spike_factor", 1.0, "must be > 1, got 1.0"),
        ("window", 0, "must be >= 1, got 0"),
        ("max_rollbacks", 0, "must be >= 1, got 0"),
    ],
)
def test_bad_fields_are_named(field, value, message):
    with pytest.raises(InputError, match=f"train.divergence.{field} {message}"):
        train.DivergenceConfig(**{field: value})


def test_a_transfer_in_the_loop_fails(new_state, tmp_path):
    """Data that goes through the device by the way."""

    def careless(start):
        for batch in make_batches(start):
            yield batch._replace(tokens=np.asarray(jnp.asarray(batch.tokens)))

    with pytest.raises(Exception, match="Disallowed host-to-device transfer"):
        fit(new_state(), tmp_path, careless)


def test_a_checkpoint_that_cannot_be_written_stops_the_run(
    new_state, tmp_path, monkeypatch
):
    """The writer's error, which comes in a thread, reaches the loop."""
    write = train.checkpoint.checksums.write

    def full(directory):
        if directory.name.startswith("8"):
            raise InputError(f"{directory}: cannot be written (No space left)")
        write(directory)

    with monkeypatch.context() as patch:
        patch.setattr(train.checkpoint.checksums, "write", full)
        with pytest.raises(InputError, match=r"8.*No space left"):
            fit(new_state(), tmp_path)
    with train.Checkpoints(tmp_path / "checkpoints") as checkpoints:
        assert checkpoints.steps() == [4]
