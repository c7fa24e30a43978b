"""group_int4: given codes, zero points, superblocks, and what its checks refuse."""

import jax.numpy as jnp
import numpy as np
import pytest

from sparse_jax import kernels
from sparse_jax.kernels import native
from sparse_jax.kernels.group import layout
from sparse_jax.kernels.group.build import from_codes, pack_groups
from sparse_jax.types import InputError
from tests.kernels.matrices import activations
from tests.kernels.test_dot import NATIVE, check, quick

dot = quick(kernels.dot, static_argnames="implementation")
implementations = pytest.mark.parametrize("implementation", ("reference", *NATIVE))
needs_native = pytest.mark.skipif(
    not native.available(), reason="the native kernels are not built"
)


def group_matrix(shape, density=0.4, seed=0):
    rng = np.random.default_rng(seed)
    w_OI = rng.standard_normal(shape).astype(np.float32)
    kept_OG = rng.random((shape[0], shape[1] // 16)) < density
    return w_OI, np.repeat(kept_OG, 16, axis=1)


def given_codes(zero_point, shape=(40, 64), seed=3):
    rng = np.random.default_rng(seed)
    kept_OG = rng.random(shape) < 0.4
    n = kept_OG.sum()
    low, high = (0, 16) if zero_point else (-8, 8)
    codes_NK = rng.integers(low, high, (n, 16))
    scales_N = rng.uniform(1e-3, 1, n).astype(jnp.bfloat16).astype(np.float32)
    zeros_N = rng.integers(0, 16, n) if zero_point else None
    return kept_OG, codes_NK, scales_N, zeros_N


@pytest.mark.parametrize("zero_point", [False, True])
def test_given_codes_and_scales_are_taken_over_exactly(zero_point):
    kept_OG, codes_NK, scales_N, zeros_N = given_codes(zero_point)
    leaf = from_codes(kept_OG, codes_NK, scales_N, zeros_N)
    want_OGK = np.zeros((*kept_OG.shape, 16), np.float32)
    shifted_NK = codes_NK - (zeros_N[:, None] if zero_point else 0)
    want_OGK[kept_OG] = scales_N[:, None] * shifted_NK
    np.testing.assert_array_equal(leaf.unpack(), want_OGK.reshape(40, -1))
    assert ("zeros" in leaf.arrays) == zero_point


@pytest.mark.parametrize("zero_point", [False, True])
@implementations
def test_integer_scales_are_taken_over_and_multiplied_by(zero_point, implementation):
    kept_OG, codes_NK, _, zeros_N = given_codes(zero_point, (40, 260))
    rng = np.random.default_rng(4)
    scales_N = rng.integers(0, 256, len(codes_NK))
    units_O = rng.uniform(1e-3, 1, 40).astype(np.float32)
    leaf = from_codes(kept_OG, codes_NK, scales_N, zeros_N, units_O)
    assert leaf.format == "group_int4_u8"
    assert ("zeros" in leaf.arrays) == zero_point
    shifted_NK = codes_NK - (zeros_N[:, None] if zero_point else 0)
    want_OGK = np.zeros((*kept_OG.shape, 16), np.float32)
    want_OGK[kept_OG] = scales_N[:, None] * shifted_NK
    want_OI = want_OGK.reshape(40, -1) * units_O[:, None]
    np.testing.assert_array_equal(leaf.unpack(), want_OI)
    cols = rng.random(260) < 0.3
    for batch in (1, 7) if implementation != "reference" else (2,):
        x_BI = activations((batch, 4160))
        check(dot(jnp.asarray(x_BI), leaf, implementation=implementation), x_BI, leaf)
        y_BO = dot(jnp.asarray(x_BI), leaf, cols=cols, implementation=implementation)
        check(y_BO, np.where(np.repeat(cols, 16), x_BI, 0), leaf)


@pytest.mark.parametrize("implementation", NATIVE)
def test_the_largest_integers_of_a_superblock_do_not_overflow(implementation):
    kept_OG = np.ones((16, 256), bool)
    n = kept_OG.size
    leaf = from_codes(
        kept_OG, np.zeros((n, 16), int), np.full(n, 255), np.full(n, 15), np.ones(16)
    )
    for sign in (-1, 1):
        x_BI = sign * jnp.ones((1, 4096))
        y_BO = dot(x_BI, leaf, implementation=implementation)
        want_BO = np.full((1, 16), -sign * 255 * 15 * 4096)
        np.testing.assert_allclose(y_BO, want_BO, rtol=1e-6)


def test_integer_scales_cost_little_and_take_half_a_bit_less():
    w_OI, mask_OI = group_matrix((64, 4096), 0.5)
    leaves = [kernels.pack(f"group_int4{end}", w_OI, mask_OI) for end in ("", "_u8")]
    errors = [((leaf.unpack() - w_OI * mask_OI) ** 2).sum() for leaf in leaves]
    assert errors[1] < 1.01 * errors[0]
    saved = leaves[0].bits_per_weight - leaves[1].bits_per_weight
    assert saved / mask_OI.mean() == pytest.approx(0.5, rel=0.05)


def test_a_small_scale_of_a_row_does_not_vanish():
    w_OI = np.ones((1, 32), np.float32)
    w_OI[0, 16:] = 1e-4
    leaf = kernels.pack("group_int4_u8", w_OI)
    scales = leaf.arrays["scales"]
    assert sorted(scales[scales > 0].tolist()) == [1, 255]
    assert np.abs(leaf.unpack() - w_OI).max() < 1e-3


def test_scales_that_are_no_bfloat16_are_rounded_to_nearest():
    kept_OG = np.ones((1, 1), bool)
    leaf = from_codes(kept_OG, np.full((1, 16), 7), np.array([0.3]))
    assert abs(leaf.unpack()[0, 0] / 2.1 - 1) < 2**-8


# 4112 inputs need two superblocks; 17 outputs leave a panel with one of 16.
@pytest.mark.parametrize("shape", [(17, 4112), (32, 9216)], ids=str)
@pytest.mark.parametrize("zero_point", [False, True])
@implementations
def test_superblocks_and_zero_points(shape, zero_point, implementation):
    leaf = pack_groups(*group_matrix(shape), zero_point=zero_point)
    rng = np.random.default_rng(2)
    cols = rng.random(shape[1] // 16) < 0.3
    for batch in (1, 7, 40) if implementation != "reference" else (2,):
        x_BI = activations((batch, shape[1]))
        y_BO = dot(jnp.asarray(x_BI), leaf, implementation=implementation)
        check(y_BO, x_BI, leaf)
    x_BI = activations((2, shape[1]))
    y_BO = dot(jnp.asarray(x_BI), leaf, cols=cols, implementation=implementation)
    check(y_BO, np.where(np.repeat(cols, 16), x_BI, 0), leaf)


@implementations
def test_extreme_codes_do_not_overflow(implementation):
    kept_OG = np.ones((16, 256), bool)
    n = kept_OG.size
    leaf = from_codes(kept_OG, np.zeros((n, 16), int), np.ones(n), np.full(n, 15))
    x_BI = np.ones((1, 4096), np.float32)
    y_BO = dot(jnp.asarray(x_BI), leaf, implementation=implementation)
    np.testing.assert_allclose(y_BO, np.full((1, 16), -15 * 4096), rtol=1e-6)


@implementations
def test_a_matrix_without_kept_groups_is_zero(implementation):
    leaf = kernels.pack("group_int4", np.zeros((20, 64), np.float32))
    y_BO = dot(jnp.ones((3, 64)), leaf, implementation=implementation)
    np.testing.assert_array_equal(y_BO, np.zeros((3, 20)))


def test_zero_points_round_closer_where_signs_agree():
    w_OI, mask_OI = group_matrix((16, 64))
    w_OI = np.abs(w_OI) + 1
    errors = [
        np.abs(pack_groups(w_OI, mask_OI, zero_point=z).unpack() - w_OI * mask_OI).max()
        for z in (False, True)
    ]
    assert errors[1] < 0.6 * errors[0]


def test_outputs_are_sorted_inside_their_panel_alone():
    leaf = pack_groups(*group_matrix((48, 256)))
    order = np.sort(leaf.arrays["order"], axis=-1)
    np.testing.assert_array_equal(order, np.broadcast_to(np.arange(16), order.shape))
    starts, counts = leaf.arrays["starts"], leaf.arrays["counts"]
    np.testing.assert_array_equal(np.diff(starts), counts.sum(axis=(1, 2)))


@pytest.mark.parametrize("density", [0.2, 0.5])
def test_expected_bits_hold_for_many_inputs(density):
    shape = (64, 11008)
    w_OI, mask_OI = group_matrix(shape, density)
    want = kernels.FORMATS["group_int4"].expected_bits(*shape, mask_OI.mean())
    assert pack_groups(w_OI, mask_OI).bits_per_weight == pytest.approx(want, rel=0.02)


def test_a_zero_in_a_kept_group_is_held_and_another_pattern_is_not():
    w_OI, mask_OI = group_matrix((16, 64))
    row, column = np.argwhere(mask_OI)[0]
    w_OI[row, column] = 0
    leaf = kernels.pack("group_int4", np.where(mask_OI, w_OI, 0))
    assert leaf.unpack()[row, column] == 0
    mask_OI = np.ones((20, 64), bool)
    mask_OI[3, 16:32:2] = False
    mask_OI[5:] = False
    mask_OI[:, 48:] = np.random.default_rng(0).random((20, 16)) < 0.3
    with pytest.raises(InputError, match=r"row 0, inputs 48 to 63 keep \d+ of 16"):
        kernels.pack("group_int4", np.ones((20, 64), np.float32), mask_OI)


def test_bad_codes_are_one_sentence():
    kept_OG, codes_NK, scales_N, zeros_N = given_codes(True)
    n = kept_OG.sum()
    with pytest.raises(
        InputError, match=rf"keeps {n} groups in 40 rows, so codes_NK must have"
    ):
        from_codes(kept_OG, codes_NK[1:], scales_N, zeros_N)
    with pytest.raises(InputError, match="codes_NK must lie between -8 and 7"):
        from_codes(kept_OG, codes_NK, scales_N)
    with pytest.raises(InputError, match="zeros_N must lie between 0 and 15, found 16"):
        from_codes(kept_OG, codes_NK, scales_N, np.full(n, 16))
    with pytest.raises(InputError, match=r"group_int4_u8: scales_N must lie.* 255"):
        from_codes(kept_OG, codes_NK, 300 * scales_N, zeros_N, np.ones(40))
    with pytest.raises(InputError, match=r"scales_N must be whole numbers, found 0\."):
        from_codes(kept_OG, codes_NK, scales_N, zeros_N, np.ones(40))
    with pytest.raises(InputError, match=r"row_scales_O must have the shape \[40\]"):
        from_codes(kept_OG, codes_NK, scales_N, zeros_N, np.ones(41))
    scales_N[2] = np.nan
    with pytest.raises(InputError, match="scales_N must lie between 0 and"):
        from_codes(kept_OG, codes_NK, scales_N, zeros_N)


def refused(leaf, name, index, value):
    array = leaf.arrays[name].copy()
    array[index] = value
    return native.check("group_int4", leaf.shape, {**leaf.arrays, name: array})


@needs_native
def test_the_checks_name_the_type():
    leaf = kernels.pack("group_int4_u8", *group_matrix((40, 4112), 0.2))
    arrays = {**leaf.arrays, "ids": np.full_like(leaf.arrays["ids"], 200)}
    found = native.check("group_int4_u8", leaf.shape, arrays)
    assert found.startswith("group_int4_u8, array ids, panel 0, superblock 0: expected")


@needs_native
def test_every_number_that_the_kernels_trust_is_checked():
    leaf = pack_groups(*group_matrix((40, 4112), 0.2), zero_point=True)
    arrays = leaf.arrays
    width = layout.superblocks(4112).width
    second = int(arrays["counts"][0, 0].sum())  # first tile of the second superblock
    assert native.check("group_int4", leaf.shape, arrays) == ""
    assert "ids below 129, found 200" in refused(leaf, "ids", (0, 2), 200)
    assert width == 129
    assert "ids below 128, found 128" in refused(leaf, "ids", (second, 0), 128)
    assert "ascending ids" in refused(leaf, "ids", (2, 1), 0)
    assert "permutation of 0 to 15" in refused(leaf, "order", (1, 0, 3), 16)
    assert "permutation of 0 to 15" in refused(
        leaf, "order", (2, 1, 3), arrays["order"][2, 1, 4]
    )
    assert "tiles in all, found" in refused(leaf, "counts", (1, 1, 2), 255)
    assert "starts: expected 0 to" in refused(leaf, "starts", 0, 1)
    assert "starts: expected ascending" in refused(leaf, "starts", 1, 2**32 - 1)
    assert "tiles in all, found" in refused(leaf, "starts", 1, arrays["starts"][1] + 1)
