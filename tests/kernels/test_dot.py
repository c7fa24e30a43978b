"""Every implementation of every format against the product of what it unpacks."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparse_jax import kernels
from sparse_jax.kernels import native
from sparse_jax.kernels.quantize import quantize_activations
from sparse_jax.types import InputError
from tests.kernels.matrices import activations, matrix, shape_for

NATIVE = native.supported_isas()
# Decoding, small batches of both kinds, prefill in one chunk of rows and in two.
BATCHES = (1, 3, 9, 66, 300)
SHAPES = ((1, 1), (40, 176), (100, 336))
formats = pytest.mark.parametrize("name", kernels.FORMATS)
native_ones = pytest.mark.parametrize("implementation", NATIVE)
# XLA takes seconds to optimise a reference, which runs once.
quick = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def expected(x_BI, leaf):
    """The product in float64, of the activations that the format multiplies by."""
    w_OI = leaf.unpack().astype(np.float64)
    if kernels.FORMATS[leaf.format].dtype.startswith("int"):
        codes_BI, scale_B1 = quantize_activations(jnp.asarray(x_BI))
        x_BI = np.asarray(codes_BI, np.float64) * np.asarray(scale_B1, np.float64)
    return x_BI @ w_OI.T


def check(actual_BO, x_BI, leaf):
    want_BO = expected(x_BI, leaf)
    assert actual_BO.shape == want_BO.shape and actual_BO.dtype == jnp.float32
    # Rounding grows with what is added up, not with what is left of it.
    size = np.abs(np.asarray(x_BI)) @ np.abs(leaf.unpack()).T + 1e-30
    error = np.max(np.abs(np.asarray(actual_BO) - want_BO) / size)
    assert error < 2e-6, error


def select(leaf, seed=5):
    """Random rows and cols, and the mask of inputs that cols leaves."""
    rng = np.random.default_rng(seed)
    rows, cols = (rng.random(-(-size // 16)) < 0.5 for size in leaf.shape)
    return rows, cols, np.repeat(cols, 16)[: leaf.shape[1]]


@formats
@native_ones
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_native_is_the_product_with_the_unpacked_matrix(name, implementation, shape):
    leaf = kernels.pack(name, *matrix(name, shape_for(name, shape)))
    rows, cols, inputs = select(leaf)
    dot = partial(kernels.dot, implementation=implementation)

    @jax.jit
    def run(xs, leaf):
        return [
            (
                dot(x, leaf),
                dot(x, leaf, cols=cols),
                dot(x, leaf, rows=rows, cols=cols),
                dot(x, leaf, rows=rows & False),
            )
            for x in xs
        ]

    xs = [activations((batch, leaf.shape[1]), seed=batch) for batch in BATCHES]
    for x_BI, results in zip(xs, run(xs, leaf), strict=True):
        all_BO, some_inputs_BO, some_BO, none_BO = map(np.asarray, results)
        check(all_BO, x_BI, leaf)
        check(some_inputs_BO, np.where(inputs, x_BI, 0), leaf)
        outputs = np.repeat(rows, 16)[: leaf.shape[0]]
        np.testing.assert_array_equal(some_BO[:, ~outputs], 0)
        np.testing.assert_allclose(
            some_BO[:, outputs], some_inputs_BO[:, outputs], rtol=1e-5, atol=1e-5
        )
        np.testing.assert_array_equal(none_BO, 0)


@formats
def test_reference_is_the_product_too(name):
    leaf = kernels.pack(name, *matrix(name, shape_for(name, (40, 176))))
    rows, cols, inputs = select(leaf)
    x_BI = activations((3, leaf.shape[1]))
    dot = quick(partial(kernels.dot, implementation="reference"))
    y_BO = np.asarray(dot(jnp.asarray(x_BI), leaf, rows=rows, cols=cols))
    outputs = np.repeat(rows, 16)[: leaf.shape[0]]
    want_BO = expected(np.where(inputs, x_BI, 0), leaf)
    np.testing.assert_allclose(
        y_BO, np.where(outputs, want_BO, 0), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("kept", [1, 3, 4, 5, 6, 8, 11, 16])
@pytest.mark.parametrize("name", [n for n in kernels.FORMATS if n.startswith("n16")])
@native_ones
def test_every_n_of_16(name, kept, implementation):
    leaf = kernels.pack(name, *matrix(name, (32, 192), kept=kept))
    assert leaf.arrays["blocks"].shape[2] == kept
    dot = jax.jit(partial(kernels.dot, implementation=implementation))
    x_BI = activations((2, 192))
    check(dot(jnp.asarray(x_BI), leaf), x_BI, leaf)


@formats
@native_ones
def test_zero_rows_and_what_is_not_finite(name, implementation):
    leaf = kernels.pack(name, *matrix(name, shape_for(name, (20, 80)), kept=16))
    x_BI = activations((5, leaf.shape[1]))
    x_BI[0] = 0
    for row, value in enumerate((np.nan, np.inf, -np.inf)):
        x_BI[row + 1, 3] = value
    dot = jax.jit(partial(kernels.dot, implementation=implementation))
    y_BO = np.asarray(dot(jnp.asarray(x_BI), leaf))
    np.testing.assert_array_equal(y_BO[0], 0)
    assert not np.isfinite(y_BO[1:4]).any()
    check(y_BO[4:], x_BI[4:], leaf)


def test_activations_that_are_not_finite_have_no_scale():
    codes, scale = quantize_activations(jnp.array([[1.0, np.nan], [0.0, 1e-38]]))
    assert np.isnan(scale[0, 0]) and scale[1, 0] == 0
    assert codes.tolist() == [[0, 0], [0, 0]]


def test_leading_axes_and_the_default_implementation():
    leaf = kernels.pack("dense_int8", *matrix("dense_int8", (20, 40)))
    x = activations((6, 40)).reshape(2, 3, 40)
    y = kernels.dot(jnp.asarray(x), leaf)
    assert y.shape == (2, 3, 20)
    check(y.reshape(6, 20), x.reshape(6, 40), leaf)


def test_bad_input_is_one_sentence():
    leaf = kernels.pack("dense_float32", np.ones((20, 40), np.float32))
    x = jnp.ones((2, 40))
    with pytest.raises(InputError, match="40 inputs, found shape"):
        kernels.dot(jnp.ones((2, 39)), leaf)
    with pytest.raises(InputError, match="rows must hold one bool for each of 2"):
        kernels.dot(x, leaf, rows=jnp.ones(3, bool))
    with pytest.raises(InputError, match="cols must hold one bool for each of 3"):
        kernels.dot(x, leaf, cols=jnp.ones(2, bool))
    with pytest.raises(InputError, match="unknown implementation 'fast'"):
        kernels.dot(x, leaf, implementation="fast")
