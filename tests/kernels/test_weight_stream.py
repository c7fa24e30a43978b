"""The weight-stream kernel, its event-by-event reference and the closed form agree."""

import importlib.util
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from jax.experimental.pallas import tpu as pltpu

from sparse_jax.dataflow import slice_counts, timeline
from sparse_jax.kernels import weight_stream
from sparse_jax.kernels.weight_stream import Costs, kernel, reference, slice_bounds
from sparse_jax.kernels.weight_stream.pallas import stream_product
from sparse_jax.kernels.weight_stream.stream import encode
from sparse_jax.types import InputError

TOKENS, OUTPUTS, INPUTS, PE_ROWS, COLUMNS = 11, 19, 10, 3, 4
"""Nothing divides: PE rows of 4, 4 and 3 tokens, slices of 3, 3, 2 and 2 inputs, three
blocks of 8, 8 and 3 rows."""

WINDOWS = (None, 1, 2, 5, 40)


def adversarial_masks():
    o, i = np.indices((OUTPUTS, INPUTS))
    rng = np.random.default_rng(1)
    return {
        "random": rng.random((OUTPUTS, INPUTS)) < 0.3,
        "empty": np.zeros((OUTPUTS, INPUTS), bool),
        "full": np.ones((OUTPUTS, INPUTS), bool),
        "empty rows": (o % 3 == 1) & (rng.random((OUTPUTS, INPUTS)) < 0.5),
        "full rows": o % 4 == 0,
        "one hot row": o == 7,
        "last row": o == OUTPUTS - 1,
        "one hot column": i == 9,
        "blocks": (o // 4 + i // 3) % 2 == 0,
        "diagonal": o % INPUTS == i,
    }


MASKS = adversarial_masks()


def random_layer(tokens=TOKENS, outputs=OUTPUTS, inputs=INPUTS):
    rng = np.random.default_rng(0)
    shapes = (tokens, inputs), (outputs, inputs), (tokens, outputs)
    return [rng.normal(size=shape).astype(np.float32) for shape in shapes]


def some_costs(window, reduction=7, pe_rows=PE_ROWS):
    """Elements of different PE rows hold different numbers of tokens."""
    return [
        Costs(
            compute=3 + r, trigger=2, row=5, reduction=reduction, rows_in_flight=window
        )
        for r in range(pe_rows)
    ]


def closed_form(mask_OI, columns, costs):
    counts_OC = slice_counts(mask_OI, columns)
    cycles = []
    for cost in costs:
        found = timeline(
            counts_OC,
            weight_cycles=cost.weight,
            row_cycles=cost.row,
            reduction_cycles=cost.reduction,
            rows_in_flight=cost.rows_in_flight,
        )
        rows_C = np.full(columns, len(mask_OI) * cost.row)
        parts = found.weights_C * cost.compute, found.weights_C * cost.trigger, rows_C
        assert np.array_equal(sum(parts), found.busy_C)
        cycles.append(np.stack([*parts, found.stall_C], 1))
    return np.stack(cycles)


PRODUCTS = ("forward", "input_gradient", "weight_gradient")


def check(mask_OI, costs, columns=COLUMNS, tokens=TOKENS, names=PRODUCTS):
    """Products of one layer: kernel == reference == closed form == matmul."""
    x, w, dy = random_layer(tokens, *mask_OI.shape)
    kept = w * mask_OI
    products = {
        "forward": ((x, w, mask_OI), x @ kept.T, mask_OI),
        "input_gradient": ((dy, w, mask_OI), dy @ kept, mask_OI.T),
        "weight_gradient": ((x, dy, mask_OI), dy.T @ x * mask_OI, mask_OI),
    }
    for name in names:
        arguments, matmul, streamed = products[name]
        options = {"columns": columns, "costs": costs}
        result, cycles = getattr(weight_stream, name)(*arguments, **options)
        slow_result, slow_cycles = getattr(reference, name)(*arguments, **options)
        np.testing.assert_allclose(slow_result, matmul, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(result, matmul, rtol=1e-4, atol=1e-4)
        expected = closed_form(streamed, columns, costs)
        np.testing.assert_array_equal(slow_cycles, expected, err_msg=name)
        np.testing.assert_array_equal(cycles, expected, err_msg=name)


@pytest.mark.parametrize("name", MASKS)
@pytest.mark.parametrize("window", WINDOWS)
def test_adversarial_masks(name, window):
    check(MASKS[name], some_costs(window, reduction=7 if window else 0))


@settings(max_examples=30, deadline=None)
@given(
    mask=hnp.arrays(bool, (OUTPUTS, INPUTS)),
    costs=st.lists(
        st.builds(
            Costs,
            compute=st.integers(0, 9),
            trigger=st.integers(0, 3),
            row=st.integers(0, 9),
            reduction=st.integers(0, 60),
            rows_in_flight=st.none() | st.integers(1, 15),
        ),
        min_size=PE_ROWS,
        max_size=PE_ROWS,
    ),
)
def test_any_mask_and_any_costs(mask, costs):
    check(mask, costs)


@pytest.mark.parametrize(
    ("shape", "tokens", "pe_rows", "columns", "names"),
    [
        # More columns than inputs, more PE rows than tokens.
        ((3, 2), 1, 2, 5, PRODUCTS),
        # More tokens than a TPU register is wide.
        ((8, 6), 130, 1, 2, ["forward"]),
    ],
)
def test_ragged_shapes(shape, tokens, pe_rows, columns, names):
    mask = np.random.default_rng(2).random(shape) < 0.7
    check(mask, some_costs(2, pe_rows=pe_rows), columns, tokens, names)


def test_clocks_by_hand():
    # Two columns, each idle in the other's row; a row in flight; reduction 4.
    mask = np.array([[True, True, False, False], [False, False, True, True]])
    w, x = np.ones((2, 4), np.float32), np.ones((1, 4), np.float32)
    costs = [Costs(compute=10, trigger=1, row=2, reduction=4, rows_in_flight=1)]
    _, cycles = weight_stream.forward(x, w, mask, columns=2, costs=costs)
    # Row 0 ends at 22 + 2 and is reduced at 28, row 1 at 28 + 24 + 4 = 56 cycles.
    np.testing.assert_array_equal(cycles, [[[20, 2, 4, 26 + 4], [20, 2, 4, 30]]])
    costs = [Costs(compute=10, trigger=1, row=2, reduction=4)]
    _, cycles = weight_stream.forward(x, w, mask, columns=2, costs=costs)
    np.testing.assert_array_equal(cycles, [[[20, 2, 4, 4], [20, 2, 4, 4]]])


def test_kept_zeros_are_sent():
    mask, w, x = np.ones((2, 4), bool), np.zeros((2, 4)), np.ones((1, 4))
    costs = [Costs(compute=1)]
    _, cycles = weight_stream.forward(x, w, mask, columns=2, costs=costs)
    assert cycles[0, :, weight_stream.COMPUTE].tolist() == [4, 4]


def test_many_rows_in_flight():
    check(MASKS["random"], some_costs(100), names=["forward"])


def test_blocks_of_rows_do_not_change_the_stream():
    rng = np.random.default_rng(0)
    w, mask = rng.normal(size=(13, 9)), rng.random((13, 9)) < 0.4
    for block_rows in (1, 4, 13, 20):
        stream = encode(w, mask, 2, block_rows)
        np.testing.assert_allclose(stream.values_BK[stream.places], w[mask])
        ends = np.cumsum(mask.sum(1))
        first = np.concatenate([[0], np.cumsum(stream.starts_BN[:, -1])[:-1]])
        found = (stream.starts_BN[:, 1:] + first[:, None]).ravel()[:13]
        np.testing.assert_array_equal(found, ends)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"mask": np.ones((2, 3), bool)},
            r"must have its weight's shape \(2, 2\)",
        ),
        (
            {"x": np.ones((4, 3), np.float32)},
            "x must have the weight's 2 inputs",
        ),
        ({"costs": []}, "an entry for each PE row"),
        ({"costs": [Costs(compute=1 << 30)]}, "do not fit the kernel's 32-bit counts"),
        ({"columns": 0}, "parts must be at least 1"),
        ({"columns": 1 << 16}, "less than 32768 columns"),
    ],
)
def test_bad_input(change, message):
    given = {
        "x": np.ones((4, 2), np.float32),
        "mask": np.ones((2, 2), bool),
        "costs": [Costs(compute=1)],
        "columns": 1,
    } | change
    x, mask = given.pop("x"), given.pop("mask")
    with pytest.raises(InputError, match=message):
        weight_stream.forward(x, np.ones((2, 2), np.float32), mask, **given)


def test_bad_gradient_and_costs():
    x, mask = np.ones((4, 2), np.float32), np.ones((3, 2), bool)
    dy = np.ones((5, 3), np.float32)
    with pytest.raises(InputError, match=r"dy must have shape \(4, 3\)"):
        weight_stream.weight_gradient(x, dy, mask, columns=1, costs=[Costs(compute=1)])
    with pytest.raises(InputError, match=r"costs.row must be >= 0"):
        Costs(compute=1, row=-1)
    with pytest.raises(InputError, match="rows_in_flight must be at least 1"):
        Costs(compute=1, rows_in_flight=0)


def test_empty_weight():
    x, w = np.ones((1, 2), np.float32), np.ones((0, 2), np.float32)
    with pytest.raises(InputError, match="at least one row"):
        weight_stream.forward(x, w, w > 0, columns=1, costs=[Costs(compute=1)])


def test_agrees_in_the_memories_of_a_tpu():
    # Imitated, and full of NaN until written.
    (x, w, _), mask = random_layer(), MASKS["random"]
    costs = some_costs(2)
    stream = encode(w, mask, COLUMNS)
    y, cycles = stream_product(
        kernel._spread(x, COLUMNS, PE_ROWS),
        None,
        *kernel._arrays(stream, costs),
        n_rows=OUTPUTS,
        slots=4,
        interpret=pltpu.InterpretParams(),
    )
    y_RLO = np.asarray(y).reshape(PE_ROWS, -1, 128).swapaxes(1, 2)[..., :OUTPUTS]
    np.testing.assert_allclose(y_RLO[0, :4], x[:4] @ (w * mask).T, rtol=1e-4, atol=1e-4)
    expected = closed_form(mask, COLUMNS, costs).swapaxes(1, 2)
    np.testing.assert_array_equal(cycles, expected)


def test_slice_bounds():
    assert slice_bounds(3, 5).tolist() == [0, 1, 2, 3, 3, 3]


def kernel_arguments(gradient):
    """Shapes of a small layer on 2 x 4 elements."""

    def shape(*sizes, dtype=jnp.float32):
        return jax.ShapeDtypeStruct(sizes, dtype)

    return (
        shape(2, 4, 3, 128),
        shape(2, 3, 8, 128) if gradient else None,
        shape(3, 64),
        shape(3, 64, dtype=jnp.int32),
        shape(3, 9, dtype=jnp.int32),
        shape(2, 5, dtype=jnp.int32),
    ), {"n_rows": 20, "slots": 16, "interpret": False}


@pytest.mark.parametrize("gradient", [False, True])
def test_lowers_for_tpu(gradient):
    arguments, options = kernel_arguments(gradient)
    lowered = stream_product.trace(*arguments, **options).lower(
        lowering_platforms=("tpu",)
    )
    assert "tpu_custom_call" in lowered.as_text()


SCRIPT = """
import jax, jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding

from sparse_jax.kernels.weight_stream.pallas import stream_product

topology = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x2")
chip = SingleDeviceSharding(topology.devices[0])


def shape(*sizes, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(sizes, dtype, sharding=chip)


for gradient in (None, shape(4, 512, 8, 256)):
    compiled = stream_product.lower(
        shape(4, 24, 171, 256),  # 4096 inputs, 1024 tokens
        gradient,
        shape(512, 16384),
        shape(512, 16384, dtype=jnp.int32),
        shape(512, 9, dtype=jnp.int32),
        shape(4, 5, dtype=jnp.int32),
        n_rows=4096,
        slots=64,
        interpret=False,
    ).compile()
    assert "tpu_custom_call" in compiled.as_text()
print("compiled both")
"""


def test_compiles_for_tpu():
    if importlib.util.find_spec("libtpu") is None:
        pytest.skip("pip install libtpu, a compile-only client")
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1"}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        env=environment | {"PYTHONPATH": os.getcwd()},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "compiled both" in done.stdout
