"""The closed form against the recursion that it stands for, written out."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from sparse_jax.dataflow import timeline
from sparse_jax.types import InputError

COUNTS = hnp.arrays(
    np.int32,
    st.tuples(st.integers(1, 30), st.integers(1, 6)),
    elements=st.integers(0, 5),
)
CYCLES = st.integers(0, 20)
WINDOWS = st.none() | st.integers(1, 35)


def recursion(counts, weight_cycles, row_cycles, reduction_cycles, rows_in_flight):
    finish, done = [0] * counts.shape[1], []
    for o, row in enumerate(counts.tolist()):
        gate = 0
        if rows_in_flight is not None and o >= rows_in_flight:
            gate = done[o - rows_in_flight]
        for c, count in enumerate(row):
            finish[c] = max(finish[c], gate) + count * weight_cycles + row_cycles
        done.append(max(finish) + reduction_cycles)
    return done


def options(weight, row, reduction, window):
    return {
        "weight_cycles": weight,
        "row_cycles": row,
        "reduction_cycles": reduction,
        "rows_in_flight": window,
    }


@settings(max_examples=300, deadline=None)
@given(counts=COUNTS, costs=st.builds(options, CYCLES, CYCLES, CYCLES, WINDOWS))
def test_equals_the_recursion(counts, costs):
    found = timeline(counts, **costs)
    done = recursion(counts, **costs)
    assert found.total == done[-1]
    assert done == sorted(done)
    np.testing.assert_array_equal(found.busy_C + found.stall_C, found.total)
    np.testing.assert_array_equal(found.weights_C, counts.sum(0))
    assert found.stall_C.min() >= costs["reduction_cycles"]


@settings(max_examples=200, deadline=None)
@given(
    row=hnp.arrays(np.int32, st.integers(1, 6), elements=st.integers(0, 5)),
    n_rows=st.integers(1, 60),
    costs=st.builds(options, CYCLES, CYCLES, CYCLES, WINDOWS),
)
def test_equal_rows_are_closed(row, n_rows, costs):
    counts = np.broadcast_to(row, (n_rows, len(row)))
    found = timeline(counts, **costs)
    assert found.total == recursion(counts, **costs)[-1]
    np.testing.assert_array_equal(found.busy_C, timeline(counts.copy(), **costs).busy_C)


@settings(max_examples=100, deadline=None)
@given(
    counts=COUNTS,
    costs=st.builds(options, CYCLES, CYCLES, CYCLES, st.integers(1, 35)),
    name=st.sampled_from(["weight_cycles", "row_cycles", "reduction_cycles"]),
)
def test_never_faster_with_more_overhead(counts, costs, name):
    total = timeline(counts, **costs).total
    assert timeline(counts, **costs | {name: costs[name] + 1}).total >= total
    wider = costs | {"rows_in_flight": costs["rows_in_flight"] + 1}
    assert timeline(counts, **wider).total <= total
    assert timeline(counts, **costs | {"rows_in_flight": None}).total <= total


@pytest.mark.parametrize("window", [1, 3, None])
def test_clocks_beyond_32_bits(window):
    counts = np.random.default_rng(0).integers(0, 5, (50, 4), dtype=np.int32)
    costs = options(1 << 30, 7, 5, window)
    assert timeline(counts, **costs).total == recursion(counts, **costs)[-1] > 2**31


@pytest.mark.parametrize("shape", [(0, 3), (3, 0)])
def test_nothing_to_do(shape):
    counts = np.zeros(shape, np.int32)
    assert timeline(counts, **options(1, 1, 1, 2)).total == 0


@pytest.mark.parametrize(
    ("costs", "message"),
    [
        (options(-1, 0, 0, None), "weight_cycles must be >= 0, found -1"),
        (options(1, 0, -2, None), "reduction_cycles must be >= 0, found -2"),
        (options(1, 0, 0, 0), "rows_in_flight must be at least 1"),
    ],
)
def test_bad_input(costs, message):
    with pytest.raises(InputError, match=message):
        timeline(np.ones((2, 2), np.int32), **costs)
