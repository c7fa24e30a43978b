"""Packing: round trips, sizes, what a format cannot hold, and the native checks."""

import jax
import numpy as np
import pytest

from sparse_jax import kernels
from sparse_jax.kernels import native
from sparse_jax.types import InputError
from tests.kernels.matrices import LOSSLESS, matrix, shape_for

formats = pytest.mark.parametrize("name", kernels.FORMATS)


@pytest.mark.parametrize("name", LOSSLESS)
@pytest.mark.parametrize("shape", [(1, 1), (33, 200)], ids=str)
def test_lossless_formats_round_trip_bit_for_bit(name, shape):
    shape = shape_for(name, shape)
    w_OI, mask_OI = matrix(name, shape)
    w_OI.flat[0] = -0.0
    unpacked = kernels.pack(name, w_OI, mask_OI).unpack()
    want = np.where(mask_OI, w_OI, 0)
    np.testing.assert_array_equal(unpacked.view(np.uint32), want.view(np.uint32))


@pytest.mark.parametrize("name", [n for n in kernels.FORMATS if n not in LOSSLESS])
def test_quantised_formats_round_to_nearest(name):
    shape = shape_for(name, (33, 272))
    w_OI, mask_OI = matrix(name, shape)
    unpacked = kernels.pack(name, w_OI, mask_OI).unpack()
    steps = {"int8": 127, "int4": 7, "int2": 1.5}[kernels.FORMATS[name].dtype]
    # Half a step of the largest weight of its row bounds that of every smaller group.
    limit = 0.51 * np.abs(w_OI).max(axis=1, keepdims=True) / steps
    assert (np.abs(unpacked - w_OI * mask_OI) <= limit).all()
    assert (unpacked[~mask_OI] == 0).all()


@formats
@pytest.mark.parametrize("kept", [4, 8])
def test_bits_per_weight_are_as_defined(name, kept):
    shape = (64, 1024)
    w_OI, mask_OI = matrix(name, shape, kept=kept)
    leaf = kernels.pack(name, w_OI, mask_OI)
    want = kernels.FORMATS[name].expected_bits(*shape, mask_OI.mean())
    assert leaf.bits_per_weight == pytest.approx(want, rel=0.03)
    assert leaf.nbytes == sum(array.nbytes for array in leaf.arrays.values())


@formats
def test_specs_describe_the_arrays(name):
    shape = shape_for(name, (40, 200))
    leaf = kernels.pack(name, *matrix(name, shape))
    specs = kernels.FORMATS[name].array_specs(shape)
    specs = {k: s for k, s in specs.items() if k in leaf.arrays or not s.optional}
    assert list(leaf.arrays) == list(specs)
    for array, spec in zip(leaf.arrays.values(), specs.values(), strict=True):
        assert array.dtype.name == spec.dtype
        assert len(array.shape) == len(spec.shape)
        sizes = zip(array.shape, spec.shape, strict=True)
        assert all(free is None or size == free for size, free in sizes)


@formats
def test_a_leaf_is_a_pytree(name):
    shape = shape_for(name, (20, 64))
    leaf = kernels.pack(name, *matrix(name, shape))
    copy = jax.tree.map(np.copy, leaf)
    assert (copy.format, copy.shape) == (name, shape)
    np.testing.assert_array_equal(copy.unpack(), leaf.unpack())


@formats
@pytest.mark.skipif(not native.available(), reason="the native kernels are not built")
def test_native_checks_accept_what_pack_makes_and_nothing_smaller(name):
    shape = shape_for(name, (40, 200))
    leaf = kernels.pack(name, *matrix(name, shape))
    assert native.check(name, shape, leaf.arrays) == ""
    for key, array in leaf.arrays.items():
        sizes = kernels.FORMATS[name].array_specs(shape)[key].shape
        for axis in [i for i, size in enumerate(sizes) if size is not None]:
            short = np.ascontiguousarray(np.delete(array, -1, axis))
            assert native.check(name, shape, {**leaf.arrays, key: short})
        wrong = {**leaf.arrays, key: array.view(np.int8)}
        if array.dtype != np.int8:
            assert "expected" in native.check(name, shape, wrong)


@pytest.mark.skipif(not native.available(), reason="the native kernels are not built")
def test_native_checks_count_what_a_bitmask_keeps():
    name, shape = "bitmask_float32", (40, 200)
    arrays = kernels.pack(name, *matrix(name, shape)).arrays
    for key, index in (("masks", (1, 2, 3)), ("offsets", 0), ("offsets", 2)):
        wrong = arrays[key].copy()
        wrong[index] ^= 1
        assert "expected" in native.check(name, shape, {**arrays, key: wrong})
    short = {**arrays, "values": arrays["values"][:-1].copy()}
    assert "of padding" in native.check(name, shape, short)


def test_what_cannot_be_held_is_one_sentence():
    w_OI = np.ones((3, 20), np.float32)
    with pytest.raises(InputError, match="unknown format 'csr'"):
        kernels.pack("csr", w_OI)
    with pytest.raises(InputError, match="multiple of 16, found 20"):
        kernels.pack("n16_int8", w_OI)
    w_OI[1, 7] = np.nan
    with pytest.raises(InputError, match="row 1, input 7 is not finite"):
        kernels.pack("dense_float32", w_OI)


@pytest.mark.parametrize("name", ["dense_int8", "ell_int8", "n16_int8"])
def test_int8_sums_hold_as_many_inputs_as_are_allowed(name):
    n_in = 1 << 17
    kept_OI = np.tile(np.arange(16) < 15, (1, n_in // 16))
    leaf = kernels.pack(name, np.where(kept_OI, 2.0, 0).astype(np.float32), kept_OI)
    y_BO = kernels.dot(jax.numpy.ones((1, n_in)), leaf)
    np.testing.assert_allclose(y_BO, [[2.0 * kept_OI.sum()]], rtol=1e-6)
    wide_OI = np.ones((1, n_in + 16), np.float32)
    with pytest.raises(InputError, match=r"at most 131072 inputs.*found 131088"):
        kernels.pack(name, wide_OI, np.tile(np.arange(16) < 15, (1, n_in // 16 + 1)))
    if native.available():
        found = native.check(name, (1, n_in + 16), leaf.arrays)
        assert "at most 131072 inputs" in found
