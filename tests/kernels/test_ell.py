"""ell_int8: the base, the tail's schedule, and what its checks refuse."""

import jax.numpy as jnp
import numpy as np
import pytest

from sparse_jax import kernels
from sparse_jax.kernels import native
from sparse_jax.kernels.ell import tail
from sparse_jax.kernels.ell.int8 import choose_slots
from sparse_jax.kernels.n16.slots import INT_OUTPUTS
from sparse_jax.kernels.quantize import quantize_rows
from tests.kernels.matrices import activations
from tests.kernels.test_dot import NATIVE, check, quick

dot = quick(kernels.dot, static_argnames="implementation")
implementations = pytest.mark.parametrize("implementation", ("reference", *NATIVE))


def unstructured(shape, density, seed=0):
    rng = np.random.default_rng(seed)
    w_OI = rng.standard_normal(shape).astype(np.float32)
    return np.where(rng.random(shape) < density, w_OI, 0).astype(np.float32)


def skewed(shape, seed=0):
    """Densities that differ from block to block and from output to output."""
    rng = np.random.default_rng(seed)
    density = rng.random((shape[0], 1)) * rng.random(shape[1]) ** 2
    w_OI = np.where(rng.random(shape) < density, rng.standard_normal(shape), 0)
    return w_OI.astype(np.float32)


MATRICES = {
    "dense": unstructured((33, 100), 1.0),
    "half": unstructured((33, 200), 0.5),
    "wide": unstructured((17, 1000), 0.2),
    "sparse": unstructured((40, 640), 0.02),
    "skewed": skewed((40, 700)),
    "one": np.eye(1, 300, 299, dtype=np.float32),
    "none": np.zeros((20, 70), np.float32),
}


@pytest.mark.parametrize("name", MATRICES)
def test_codes_are_those_of_the_row_scales(name):
    w_OI = MATRICES[name]
    codes_OI, scales_O = quantize_rows(w_OI)
    unpacked = kernels.pack("ell_int8", w_OI).unpack()
    np.testing.assert_array_equal(unpacked, codes_OI * scales_O[:, None])


@pytest.mark.parametrize("name", MATRICES)
@implementations
def test_every_shape_of_mask(name, implementation):
    leaf = kernels.pack("ell_int8", MATRICES[name])
    n_in = leaf.shape[1]
    for batch in (1, 5) if implementation != "reference" else (1,):
        x_BI = activations((batch, n_in))
        y_BO = dot(jnp.asarray(x_BI), leaf, implementation=implementation)
        check(y_BO, x_BI, leaf)
    cols = np.random.default_rng(4).random(-(-n_in // 16)) < 0.1
    x_BI = activations((1, n_in))
    y_BO = dot(jnp.asarray(x_BI), leaf, cols=cols, implementation=implementation)
    check(y_BO, np.where(np.repeat(cols, 16)[:n_in], x_BI, 0), leaf)


@pytest.mark.parametrize("density", [0.05, 0.3, 1.0])
def test_the_schedule_places_every_weight_once_inside_its_window(density):
    rng = np.random.default_rng(1)
    tail_OI = rng.random((48, 704)) < density * rng.random((48, 1))
    steps = tail.schedule(tail_OI)
    held = steps.columns >= 0
    rows = np.broadcast_to(
        steps.panels[:, None, None] * 16 + np.arange(16)[:, None], held.shape
    )
    placed_OI = np.zeros(tail_OI.shape, int)
    np.add.at(placed_OI, (rows[held], steps.columns[held]), 1)
    np.testing.assert_array_equal(placed_OI, tail_OI)
    inside = steps.columns - steps.starts[:, None, None] * 16
    assert inside[held].min() >= 0 and inside[held].max() < 128
    assert steps.starts.max() <= tail.last_start(704) == 40
    assert (np.diff(steps.panels) >= 0).all()


def test_windows_keep_the_padding_small():
    tail_OI = np.random.default_rng(0).random((64, 4096)) < 0.05
    slots = len(tail.schedule(tail_OI).panels) * 64
    assert slots < 1.4 * tail_OI.sum()


def test_lanes_are_those_of_the_base():
    slots = np.arange(64, dtype=np.uint8).reshape(1, 16, 4)
    lanes = tail.to_lanes(slots)
    np.testing.assert_array_equal(lanes[0, ::4] // 4, INT_OUTPUTS)
    np.testing.assert_array_equal(tail.from_lanes(lanes), slots)


def test_slots_follow_the_mask():
    rng = np.random.default_rng(0)
    chosen = [choose_slots(rng.random((32, 1024)) < d) for d in (0.1, 0.2, 0.3, 0.5, 1)]
    assert chosen == sorted(chosen) and chosen[0] <= 2 and chosen[-1] == 16
    balanced = rng.random((32, 64, 16)).argsort(axis=2) < 6
    assert choose_slots(balanced.reshape(32, 1024)) == 6


def refused(leaf, name, index, value):
    array = leaf.arrays[name].copy()
    array[index] = value
    return native.check("ell_int8", leaf.shape, {**leaf.arrays, name: array})


@pytest.mark.skipif(not native.available(), reason="the native kernels are not built")
def test_every_number_that_the_kernels_trust_is_checked():
    leaf = kernels.pack("ell_int8", MATRICES["skewed"])
    arrays = leaf.arrays
    assert native.check("ell_int8", leaf.shape, arrays) == ""
    assert "start before block 41, found 41" in refused(leaf, "starts", 3, 41)
    assert "offsets: expected 0 to" in refused(leaf, "offsets", 0, 1)
    assert "offsets: expected ascending" in refused(leaf, "offsets", 1, 2**32 - 1)
    assert "ids below 128, found 128 in step 2" in refused(leaf, "tail", (2, 7), 128)
    tall = np.repeat(arrays["blocks"], 17, axis=2)[:, :, :17]
    wrong = {**arrays, "blocks": np.ascontiguousarray(tall)}
    assert "expected 1 to 16 slots, found 17" in native.check(
        "ell_int8", leaf.shape, wrong
    )
