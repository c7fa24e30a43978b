"""dense_int2 and dense_int4: where the bits lie, and what their checks refuse."""

import numpy as np
import pytest

from sparse_jax import kernels
from sparse_jax.kernels import native, pack_codes
from sparse_jax.kernels.quantize import quantize_groups, round_asymmetric, scale_inputs
from sparse_jax.types import InputError
from tests.kernels.matrices import matrix

needs_native = pytest.mark.skipif(
    not native.available(), reason="the native kernels are not built"
)


def test_the_bits_of_dense_int2_lie_where_its_docstring_says():
    shape = (20, 150)
    arrays = kernels.pack("dense_int2", *matrix("dense_int2", shape)).arrays
    want_OI = kernels.pack("dense_int2", *matrix("dense_int2", shape)).unpack()
    for row, column in np.ndindex(shape):
        p, r, g = row // 16, row % 16, column // 64
        t, k, j = column // 16, column % 16 // 4, column % 4
        code = arrays["codes"][p, t, r, j] >> (2 * k) & 3
        zero = arrays["zeros"][p, g, 0] >> np.uint32(2 * r) & 3
        scale = np.float32(arrays["scales"][p, g, r])
        assert scale * (np.float32(code) - np.float32(zero)) == want_OI[row, column]


def test_two_bits_reach_both_ends_of_a_group():
    w_OI = np.linspace(-1, 2, 64, dtype=np.float32)[None]
    found_OI = kernels.pack("dense_int2", w_OI).unpack()
    assert sorted(set(found_OI[0].tolist())) == [-1, 0, 1, 2]
    assert np.abs(found_OI - w_OI).max() <= 0.5


def test_rounding_keeps_zero_and_never_leaves_the_codes():
    w_K = np.random.default_rng(0).standard_normal((50, 64)).astype(np.float32)
    w_K[:, ::3] = 0
    w_K[:10] = np.abs(w_K[:10])
    w_K[10] = 0
    for bits in (2, 3, 4):
        codes_K, scales, zeros = round_asymmetric(w_K, bits)
        for array in (codes_K, zeros):
            assert array.min() >= 0 and array.max() < 1 << bits
        rounded_K = scales[:, None] * (codes_K - zeros[:, None].astype(np.float32))
        assert (rounded_K[w_K == 0] == 0).all()
        assert (np.abs(rounded_K - w_K) <= 0.51 * scales[:, None]).all()


def test_four_bits_in_finer_groups_round_closer():
    w_OI, _ = matrix("dense_int4", (32, 512))
    errors = []
    for width in (128, 32):
        rows = w_OI.reshape(-1, width)
        scales_N1 = (np.abs(rows).max(axis=1, keepdims=True) / 7).astype(np.float32)
        scales_N1 = (scales_N1.view(np.uint32) & 0xFFFF0000).view(np.float32)
        codes = np.clip(np.rint(rows / scales_N1), -8, 7).astype(np.int8)
        leaf = pack_codes(
            "dense_int4", codes.reshape(32, 512), scales_N1.reshape(32, -1), width=width
        )
        assert leaf.bits_per_weight == 4 + 16 / width
        errors.append(((leaf.unpack() - w_OI) ** 2).mean())
    assert errors[1] < 0.7 * errors[0]


def test_zero_points_take_their_bits_and_no_more():
    codes_OI = np.tile(np.arange(-8, 8, dtype=np.int8), (16, 32))
    scales_OS, zeros_OS = np.ones((16, 4), np.float32), np.full((16, 4), 7, np.int8)
    leaf = pack_codes("dense_int4", codes_OI, scales_OS, width=128, zeros_OS=zeros_OS)
    assert leaf.bits_per_weight == 4 + (16 + 4) / 128
    two = kernels.pack("dense_int2", *matrix("dense_int2", (16, 512)))
    assert two.bits_per_weight == 2 + (16 + 2) / 64


@needs_native
@pytest.mark.parametrize(("name", "least"), [("dense_int4", 32), ("n16_int4", 64)])
def test_no_other_number_of_scales_is_accepted(name, least):
    shape = (40, 208)
    codes_OI, scales_OG = quantize_groups(matrix(name, shape)[0])
    mask_OI = np.tile(np.arange(16) < 8, (40, 13))
    leaf = pack_codes(name, codes_OI, scales_OG.astype(np.float32), mask_OI, width=128)
    for groups in (1, 2, 3, 4, 5, 6, 8, 16):
        scales = np.resize(leaf.arrays["scales"], (3, groups, 16))
        wrong = native.check(name, shape, {**leaf.arrays, "scales": scales})
        if groups in (2, 4, 8) and 256 / groups >= least:
            assert wrong == ""
        else:
            assert f"{name}, array scales: expected 2 for each output" in wrong
            assert f"found {groups}" in wrong


@needs_native
def test_zero_points_of_another_shape_are_refused():
    leaf = kernels.pack("dense_int4", *matrix("dense_int4", (40, 208)))
    for shape in ((3, 2, 1), (3, 1, 2), (2, 2, 2)):
        arrays = {**leaf.arrays, "zeros": np.zeros(shape, np.uint32)}
        found = native.check("dense_int4", (40, 208), arrays)
        assert "array zeros: expected shape [3, 2, 2], found" in found


def test_scales_that_fit_no_group_are_refused_without_the_kernels():
    with pytest.raises(
        InputError, match=r"expected 2, 4 or 8 scales .* 200 inputs, fou"
    ):
        scale_inputs(200, 3)
