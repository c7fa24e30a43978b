"""Learning-rate schedules: end points, monotone parts, bad values."""

import itertools

import pytest

from sparse_jax.train import ScheduleConfig
from sparse_jax.types import InputError


def rates(steps=101, **fields):
    schedule = ScheduleConfig(peak=2.0, **fields)
    return [schedule(step, steps=steps) for step in range(steps)]


@pytest.mark.parametrize("kind", ["linear", "cosine", "wsd"])
@pytest.mark.parametrize("final_ratio", [0.0, 0.1])
def test_schedules_start_at_the_peak_and_end_at_the_final_rate(kind, final_ratio):
    found = rates(kind=kind, final_ratio=final_ratio)
    assert found[0] == 2.0
    assert found[-1] == pytest.approx(2.0 * final_ratio, abs=1e-12)
    assert all(a >= b for a, b in itertools.pairwise(found))


def test_constant_never_changes():
    assert set(rates(kind="constant")) == {2.0}


def test_cosine_is_half_way_down_in_the_middle():
    assert rates(kind="cosine", final_ratio=0.0)[50] == pytest.approx(1.0)


def test_wsd_is_flat_until_its_decay():
    found = rates(kind="wsd", final_ratio=0.0, decay_share=0.2)
    assert found[:81] == pytest.approx([2.0] * 81)
    assert found[90] == pytest.approx(1.0)


def test_warm_up_is_linear_and_reaches_the_peak():
    found = rates(kind="linear", warmup_steps=4, final_ratio=0.0)
    assert found[:5] == pytest.approx([0.4, 0.8, 1.2, 1.6, 2.0])


@pytest.mark.parametrize("field", ["final_ratio", "decay_share"])
def test_bad_shares_are_named(field):
    with pytest.raises(InputError, match=f"schedule.{field} must be in"):
        ScheduleConfig(**{field: 1.5})
