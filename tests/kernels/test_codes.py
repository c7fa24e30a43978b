"""Codes, scales and zero points taken over exactly, in every type that holds them."""

import jax.numpy as jnp
import numpy as np
import pytest

from sparse_jax import kernels
from sparse_jax.kernels import holds_codes, pack_codes
from sparse_jax.types import InputError
from tests.kernels.matrices import activations
from tests.kernels.test_dot import NATIVE, check, quick

dot = quick(kernels.dot, static_argnames="implementation")
implementations = pytest.mark.parametrize("implementation", ("reference", *NATIVE))


def given(bits, width, shape=(40, 272), *, zeros=True, seed=0):
    """Codes, scales and zero points of a grid, and the weights that they stand for."""
    rng = np.random.default_rng(seed)
    half, n_groups = 1 << (bits - 1), -(-shape[1] // (width or shape[1]))
    codes_OI = rng.integers(-half, half, shape).astype(np.int8)
    scales_OS = rng.uniform(0.1, 1, (shape[0], n_groups))
    scales_OS = scales_OS.astype(jnp.bfloat16).astype(np.float32)
    zeros_OS = rng.integers(-half, half, scales_OS.shape).astype(np.int8)
    every = [np.repeat(a, width or shape[1], axis=1) for a in (scales_OS, zeros_OS)]
    scales_OI, zeros_OI = (a[:, : shape[1]].astype(np.float32) for a in every)
    if not zeros:
        zeros_OS, zeros_OI = None, 0
    return codes_OI, scales_OS, zeros_OS, scales_OI * (codes_OI - zeros_OI)


@pytest.mark.parametrize("zeros", [False, True])
@pytest.mark.parametrize(
    ("format", "bits", "width"),
    [
        ("dense_int4", 4, 32),
        ("dense_int4", 4, 64),
        ("dense_int4", 4, 128),
        ("dense_int4", 4, 96),
        ("dense_int4", 4, 0),
        ("dense_int4", 3, 64),
        ("dense_int2", 2, 64),
        ("dense_int2", 2, 192),
        ("dense_int2", 2, 0),
        ("group_int4", 4, 16),
        ("group_int4", 4, 48),
        ("n16_int4", 3, 64),
        ("n16_int4", 2, 128),
        ("dense_int8", 4, 0),
        ("ell_int8", 3, 0),
    ],
)
def test_every_type_holds_them_exactly(format, bits, width, zeros):
    codes_OI, scales_OS, zeros_OS, w_OI = given(bits, width, zeros=zeros)
    assert holds_codes(format, codes_OI, scales_OS, width, zeros_OS) is None
    leaf = pack_codes(format, codes_OI, scales_OS, width=width, zeros_OS=zeros_OS)
    np.testing.assert_array_equal(leaf.unpack(), w_OI)


@pytest.mark.parametrize("zeros", [False, True])
@pytest.mark.parametrize("width", [32, 64, 128])
@implementations
def test_finer_scales_and_zero_points_are_multiplied_by(width, zeros, implementation):
    codes_OI, scales_OS, zeros_OS, _ = given(4, width, (56, 336), zeros=zeros)
    leaf = pack_codes("dense_int4", codes_OI, scales_OS, width=width, zeros_OS=zeros_OS)
    cols = np.random.default_rng(2).random(21) < 0.4
    for batch in (1, 7) if implementation != "reference" else (2,):
        x_BI = activations((batch, 336))
        check(dot(jnp.asarray(x_BI), leaf, implementation=implementation), x_BI, leaf)
        y_BO = dot(jnp.asarray(x_BI), leaf, cols=cols, implementation=implementation)
        check(y_BO, np.where(np.repeat(cols, 16), x_BI, 0), leaf)


@implementations
def test_n16_with_scales_of_64_inputs(implementation):
    codes_OI, scales_OS, _, _ = given(4, 64, (40, 336), zeros=False)
    mask_OI = np.tile(np.arange(16) < 6, (40, 21))
    leaf = pack_codes("n16_int4", codes_OI, scales_OS, mask_OI, width=64)
    cols = np.random.default_rng(2).random(21) < 0.4
    x_BI = activations((3, 336))
    check(dot(jnp.asarray(x_BI), leaf, implementation=implementation), x_BI, leaf)
    y_BO = dot(jnp.asarray(x_BI), leaf, cols=cols, implementation=implementation)
    check(y_BO, np.where(np.repeat(cols, 16), x_BI, 0), leaf)


@pytest.mark.parametrize(("format", "code"), [("dense_int4", 7), ("dense_int2", 1)])
@pytest.mark.parametrize("sign", [-1, 1])
@implementations
def test_extreme_codes_do_not_overflow(format, code, sign, implementation):
    """The largest code and the smallest zero point, and the other way round."""
    most, least = (code, -code - 1)[::sign]
    codes_OI = np.full((16, 256), most, np.int8)
    scales_OS = np.ones((16, 2), np.float32)
    zeros_OS = np.full((16, 2), least, np.int8)
    leaf = pack_codes(format, codes_OI, scales_OS, width=128, zeros_OS=zeros_OS)
    x_BI = np.where(np.arange(256) % 5, 1, -1).astype(np.float32)[None]
    y_BO = dot(jnp.asarray(x_BI), leaf, implementation=implementation)
    want = (most - least) * x_BI.sum()
    np.testing.assert_allclose(y_BO, np.full((1, 16), want), rtol=1e-6)
    ones_BO = dot(jnp.ones((1, 256)), leaf, implementation=implementation)
    np.testing.assert_allclose(ones_BO, np.full((1, 16), 256 * (most - least)), 1e-6)


def test_zero_points_are_kept_only_where_they_are_needed():
    codes_OI, scales_OS, zeros_OS, w_OI = given(3, 64)
    leaf = pack_codes("dense_int4", codes_OI, scales_OS, width=64, zeros_OS=zeros_OS)
    assert list(leaf.arrays) == ["codes", "scales"]
    np.testing.assert_array_equal(leaf.unpack(), w_OI)


def test_what_is_pruned_is_zero_whatever_its_code():
    codes_OI, scales_OS, zeros_OS, w_OI = given(4, 32)
    mask_OI = np.random.default_rng(1).random(codes_OI.shape) < 0.5
    leaf = pack_codes(
        "dense_int4", codes_OI, scales_OS, mask_OI, width=32, zeros_OS=zeros_OS
    )
    np.testing.assert_array_equal(leaf.unpack(), w_OI * mask_OI)
    groups_OI = np.repeat(mask_OI[:, ::16], 16, axis=1)
    leaf = pack_codes(
        "group_int4", codes_OI, scales_OS, groups_OI, width=32, zeros_OS=zeros_OS
    )
    np.testing.assert_array_equal(leaf.unpack(), w_OI * groups_OI)


def test_integer_scales_are_found():
    codes_OI, scales_OS, _, _ = given(4, 16, zeros=False)
    assert "integers up to 255 times a power of two" in (
        holds_codes("group_int4_u8", codes_OI, scales_OS, 16) or ""
    )
    rng = np.random.default_rng(3)
    units_O1 = 2.0 ** rng.integers(-9, 3, (40, 1))
    scales_OS = (rng.integers(0, 256, scales_OS.shape) * units_O1).astype(np.float32)
    leaf = pack_codes("group_int4_u8", codes_OI, scales_OS, width=16)
    other = pack_codes("group_int4", codes_OI, scales_OS, width=16)
    np.testing.assert_array_equal(leaf.unpack(), other.unpack())


@pytest.mark.parametrize(
    ("format", "bits", "width", "sentence"),
    [
        ("dense_int2", 4, 64, "holds codes and zero points from -2 to 1"),
        ("dense_int2", 2, 32, "has a scale for each 64 inputs, not for each 32 inputs"),
        ("n16_int4", 3, 32, "has a scale for each 64 or 128 inputs, not for each 32"),
        ("n16_int4", 4, 64, "no zero points, and code - zero is not always from -8"),
        ("dense_int8", 8, 0, "has no zero points, and code - zero is not always from"),
        ("group_int4", 4, 8, "has a scale for each 16 inputs, not for each 8 inputs"),
    ],
)
def test_what_cannot_be_held_is_one_sentence(format, bits, width, sentence):
    codes_OI, scales_OS, zeros_OS, _ = given(bits, width)
    with pytest.raises(InputError, match=f"{format}: .* exactly: it .*{sentence}"):
        pack_codes(format, codes_OI, scales_OS, width=width, zeros_OS=zeros_OS)


def test_zero_points_have_the_shape_of_scales():
    codes_OI, scales_OS, zeros_OS, _ = given(4, 64)
    with pytest.raises(InputError, match=r"zero points of shape \[40, 5\], as the sca"):
        pack_codes(
            "dense_int4", codes_OI, scales_OS, width=64, zeros_OS=zeros_OS[:, 1:]
        )
