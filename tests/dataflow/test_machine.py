"""The machines: their numbers, and what they cost an element."""

import dataclasses
import math

import pytest

from sparse_jax.dataflow import IDEAL, MACHINES, Constant, machine
from sparse_jax.types import InputError

PRODUCTS = ("forward", "input_gradient", "weight_gradient")


@pytest.mark.parametrize("name", MACHINES)
def test_every_constant_says_where_it_comes_from(name):
    for field, constant in machine(name).constants().items():
        assert constant.source and constant.unit, field
        if constant.status == "assumed":
            assert constant.low < constant.high, f"{field} is assumed without a range"


def test_published_sizes():
    cs2, cs3 = machine("cs2"), machine("cs3")
    cores = [m.grid_rows.value * m.grid_columns.value for m in (cs2, cs3)]
    assert cores[1] == 893_064 and cores[1] < 900_000 and cores[0] < 850_000
    peaks = [
        cores * m.lanes.value * 2 * m.clock_hz.value
        for cores, m in zip((850e3, 900e3), (cs2, cs3), strict=True)
    ]
    # 7.5 PF, and an eighth of the 125 PF that credit sparsity.
    assert peaks == pytest.approx([7.48e15, 15.6e15], rel=0.01)
    wafer = 900e3 * cs3.sram_bytes_per_cycle.value * cs3.clock_hz.value
    assert wafer == pytest.approx(21e15, rel=0.01)


def test_axpy_waits_for_lanes_or_memory():
    cs2, cs3 = machine("cs2"), machine("cs3")
    # WSE-2's ports carry exactly x, y and y for 4 lanes.
    assert [cs2.axpy_cycles(n) for n in (0, 1, 4, 5, 400)] == [0, 1, 1, 2, 100]
    assert cs3.axpy_cycles(400) == 50
    uncached = cs3.replace(sram_bytes_per_token=6)
    assert uncached.axpy_cycles(400) == math.ceil(400 * 6 / 21.5) == 112


def test_costs_of_the_products():
    cs3 = machine("cs3").replace(
        trigger_cycles=2,
        row_cycles=3,
        row_vector_cycles=0.5,
        hop_cycles=2,
        dot_reduce_cycles=5,
        rows_in_flight=7,
    )
    forward, back, gradient = (
        cs3.costs(product, tokens=40, rows=10, columns=100) for product in PRODUCTS
    )
    assert forward == back
    assert dataclasses.asdict(forward) == {
        "compute": 5,
        "trigger": 2,
        "row": 6,  # 3 + 5 vectors / 2, rounded up
        "reduction": 200,
        "rows_in_flight": 7,
    }
    assert gradient.compute == 10 and gradient.reduction == 20


@pytest.mark.parametrize("product", PRODUCTS)
def test_ideal_costs_are_arithmetic_alone(product):
    ideal = machine("cs3").ideal()
    costs = ideal.costs(product, tokens=64, rows=10, columns=10)
    assert dataclasses.asdict(costs) == {
        "compute": 8,
        "trigger": 0,
        "row": 0,
        "reduction": 0,
        "rows_in_flight": None,
    }
    assert ideal.even
    assert all(ideal.constants()[name].value == value for name, value in IDEAL.items())


@pytest.mark.parametrize("product", PRODUCTS)
@pytest.mark.parametrize("name", MACHINES)
def test_costs_rise_with_every_overhead(name, product):
    base = machine(name)
    given = {"tokens": 50, "rows": 30, "columns": 20}
    for field, constant in base.uncertain():
        low, high = (
            base.replace(**{field: end}).costs(product, **given)
            for end in (constant.low, constant.high)
        )
        if field in ("rows_in_flight", "sram_bytes_per_cycle"):
            low, high = high, low
        assert low.compute <= high.compute and low.trigger <= high.trigger, field
        assert low.row <= high.row and low.reduction <= high.reduction, field


def test_replace_stretches_the_range():
    constant = machine("cs3").replace(trigger_cycles=100).trigger_cycles
    assert (constant.low, constant.value, constant.high) == (0, 100, 100)
    assert machine("cs3").trigger_cycles.value == 1


def test_bad_input():
    with pytest.raises(InputError, match=r"machine 'cs4' is unknown.*\['cs2', 'cs3'\]"):
        machine("cs4")
    with pytest.raises(InputError, match="no constant 'cores'"):
        machine("cs3").replace(cores=3)
    with pytest.raises(InputError, match="product must be one of"):
        machine("cs3").costs("backward", tokens=1, rows=1, columns=1)
    given = {"unit": "cycles", "low": 1, "high": 2, "source": "a test"}
    with pytest.raises(InputError, match=r"range \[1, 2\], found 3 cycles"):
        Constant(value=3, status="assumed", **given)
    with pytest.raises(InputError, match="status must be one of"):
        Constant(value=1, status="guessed", **given)
