"""Quantised checkpoints packed: codes and scales are taken over as they are."""

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from sparse_jax import io, kernels
from sparse_jax.infer import PackConfig, pack_checkpoint, pack_table
from sparse_jax.infer.random import random_mask
from sparse_jax.io import words
from sparse_jax.kernels import Packed, native, pack_codes
from sparse_jax.models import LlamaConfig
from sparse_jax.types import InputError
from tests.io import quantized_models as quantized

CONFIG = LlamaConfig(
    vocab_size=24, d_model=128, d_ff=256, n_layers=1, n_heads=2, n_kv_heads=1
)
UP = "model.layers.0.mlp.up_proj.weight"
INT8 = quantized.scheme(8)
INT4 = quantized.scheme(4, 128, format="pack-quantized")
GROUPS4 = quantized.scheme(4, 32, format="pack-quantized")
WIDE4 = quantized.scheme(4, 64, format="pack-quantized")
ROWS4 = quantized.scheme(4, format="pack-quantized")
IMPLEMENTATIONS = (*native.supported_isas(),) if native.available() else ("reference",)


def mask_of(kind: str, sparsity: float):
    rng = np.random.default_rng(1)
    return lambda shape: random_mask(rng, shape, kind, sparsity)


def packed_weights(path) -> Packed:
    model = io.read_packed(path)
    return model.params["layers"]["mlp"]["up"]["kernel"][0]


@pytest.mark.parametrize(
    ("scheme", "zeros", "sparsity", "expected"),
    [
        (INT8, "dense", 0.0, "dense_int8"),
        (INT8, "n16_", 0.5, "n16_int8"),
        (INT8, "any", 0.8, "ell_int8"),
        (INT4, "dense", 0.0, "dense_int4"),
        (INT4, "n16_", 0.6875, "n16_int4"),
        (INT4, "any", 0.8, "dense_int4"),  # ell_int8 has no scales of groups
        (INT4, "group_", 0.5, "group_int4_u8"),  # a scale of a row fits all its groups
        (GROUPS4, "group_", 0.5, "group_int4_u8"),
        (GROUPS4, "dense", 0.0, "dense_int4"),
        (GROUPS4, "n16_", 0.5, "dense_int4"),  # n16_int4 has no scales of 32 inputs
        (WIDE4, "n16_", 0.5, "n16_int4"),
        (ROWS4, "dense", 0.0, "dense_int4"),
        (ROWS4, "any", 0.8, "ell_int8"),
    ],
)
def test_codes_and_scales_are_taken_over(scheme, zeros, sparsity, expected, tmp_path):
    kept = mask_of(zeros, sparsity) if sparsity else None
    written = quantized.write(tmp_path / "a", CONFIG, scheme, kept=kept)
    reader = io.open_blocks(tmp_path / "a")
    report = pack_checkpoint(reader, tmp_path / "a.packed")
    leaf = packed_weights(tmp_path / "a.packed")
    assert leaf.format == expected
    # Bit for bit: the scales are such that code * scale is exact.
    assert np.array_equal(leaf.unpack(), written.weights(UP))
    (row,) = (row for row in report["tensors"] if row["name"] == UP)
    assert row["note"] == "codes taken over" and "codes taken over" in pack_table(
        report
    )
    bits = 4 if "4" in report["checkpoint_dtype"] else 8
    assert report["dtype"] == report["checkpoint_dtype"] == f"int{bits}, bfloat16"
    assert row["bytes_before"] == reader.entries[UP].nbytes
    embedding = io.read_packed(tmp_path / "a.packed").params["embed"]["embedding"]
    assert embedding.dtype == ml_dtypes.bfloat16


def test_group_scales_that_are_no_integers_stay_bfloat16(tmp_path):
    def any_scales(tensors):
        rng = np.random.default_rng(0)
        scales = {k: a for k, a in tensors.items() if k.endswith("_scale")}
        return tensors | {
            k: rng.uniform(0.01, 1, a.shape).astype(a.dtype) for k, a in scales.items()
        }

    kept = mask_of("group_", 0.5)
    quantized.write(tmp_path / "a", CONFIG, GROUPS4, kept=kept, changes=any_scales)
    pack_checkpoint(io.open_blocks(tmp_path / "a"), tmp_path / "p")
    assert packed_weights(tmp_path / "p").format == "group_int4"


def asymmetric(bits: int, group: int, found: dict[str, tuple]):
    """A scheme with zero points, and what makes a checkpoint of it.

    `found` gets the codes and the zero points of every matrix.
    """
    scheme = quantized.scheme(bits, group, format="pack-quantized")
    scheme["config_groups"]["group_0"]["weights"]["symmetric"] = False
    rng, half = np.random.default_rng(4), 1 << (bits - 1)

    def change(tensors):
        changed = dict(tensors)
        for key in [key for key in tensors if key.endswith("_scale")]:
            name = key.removesuffix("_scale")
            zeros_OS = rng.integers(-half, half, tensors[key].shape).astype(np.int8)
            shape = tuple(tensors[f"{name}_shape"])
            codes_OI = rng.integers(-half, half, shape).astype(np.int8)
            found[name] = codes_OI, zeros_OS
            changed[f"{name}_packed"] = words.pack(codes_OI, bits)
            changed[f"{name}_zero_point"] = words.pack(zeros_OS.T, bits).T.copy()
        return changed

    return scheme, change


@pytest.mark.parametrize(
    ("bits", "group", "expected"),
    [
        (2, 64, "dense_int2"),
        (2, 128, "dense_int2"),
        (2, 0, "dense_int2"),
        (2, 32, "dense_int4"),  # code - zero from -3 to 3
        (3, 128, "dense_int4"),  # from -7 to 7
        (4, 32, "dense_int4"),  # with zero points
        (4, 16, "group_int4_u8"),
    ],
)
def test_zero_points_are_taken_over(bits, group, expected, tmp_path):
    found = {}
    scheme, change = asymmetric(bits, group, found)
    written = quantized.write(tmp_path / "a", CONFIG, scheme, changes=change)
    pack_checkpoint(io.open_blocks(tmp_path / "a"), tmp_path / "a.packed")
    leaf = packed_weights(tmp_path / "a.packed")
    assert leaf.format == expected
    assert ("zeros" in leaf.arrays) == (bits == 4 or expected == "dense_int2")
    codes_OI, zeros_OS = found[UP]
    width = 128 // zeros_OS.shape[1]
    scales_OI = np.repeat(written.scales[UP].astype(np.float32), width, axis=1)
    shifted_OI = codes_OI - np.repeat(zeros_OS.astype(np.float32), width, axis=1)
    np.testing.assert_array_equal(leaf.unpack(), scales_OI * shifted_OI)


def test_zero_points_of_8_bits_are_refused(tmp_path):
    scheme, change = asymmetric(8, 0, {})
    quantized.write(tmp_path / "a", CONFIG, scheme, changes=change)
    with pytest.raises(InputError, match="dense_int8 has no zero points, and code - z"):
        pack_checkpoint(io.open_blocks(tmp_path / "a"), tmp_path / "p")


def test_matrices_in_floats_keep_their_dtype(tmp_path):
    def plain(tensors):
        tensors = {k: v for k, v in tensors.items() if not k.startswith(UP)}
        return tensors | {UP: np.ones((256, 128), quantized.BF16)}

    quantized.write(tmp_path / "a", CONFIG, INT8, changes=plain)
    pack_checkpoint(io.open_blocks(tmp_path / "a"), tmp_path / "p")
    assert packed_weights(tmp_path / "p").format == "dense_bfloat16"


def test_floats_are_code_times_scale_where_they_are_asked_for(tmp_path):
    written = quantized.write(tmp_path / "a", CONFIG, INT8)
    for dtype in ("float32", "bfloat16"):
        config = PackConfig(dtype=dtype)
        path = tmp_path / f"{dtype}.packed"
        pack_checkpoint(io.open_blocks(tmp_path / "a"), path, config)
        leaf = packed_weights(path)
        assert leaf.format == f"dense_{dtype}"
        expected = written.weights(UP).astype(dtype).astype(np.float32)
        assert np.array_equal(leaf.unpack(), expected)


def test_a_named_type_takes_codes_over_too(tmp_path):
    kept = mask_of("n16_", 0.5)
    written = quantized.write(tmp_path / "a", CONFIG, INT8, kept=kept)
    config = PackConfig(format="ell_int8")
    pack_checkpoint(io.open_blocks(tmp_path / "a"), tmp_path / "p", config)
    leaf = packed_weights(tmp_path / "p")
    assert leaf.format == "ell_int8"
    assert np.array_equal(leaf.unpack(), written.weights(UP))


@pytest.mark.parametrize(
    ("scheme", "config", "scale_dtype", "sentence"),
    [
        (
            quantized.scheme(4, 8, format="pack-quantized"),
            PackConfig(),
            quantized.BF16,
            "has a scale for each 32, 64 or 128 inputs, not for each 8 inputs; ask",
        ),
        (
            quantized.scheme(8, 64),
            PackConfig(dtype="int8"),
            quantized.BF16,
            "dense_int8 has a scale for each row, not for each 64 inputs; ask for flo",
        ),
        (
            quantized.scheme(8, 64),
            PackConfig(),
            quantized.BF16,
            "dense_int8 has a scale for each row, not for each 64 inputs; ask for flo",
        ),
        (
            INT8,
            PackConfig(dtype="int4"),
            quantized.BF16,
            "dense_int4 holds codes from -8 to 7; ask for float32, which holds code",
        ),
        (
            INT8,
            PackConfig(format="dense_int4"),
            quantized.BF16,
            "dense_int4: the matrix cannot be held exactly: it holds codes from -8",
        ),
        (
            INT4,
            PackConfig(),
            np.dtype(np.float16),
            "dense_int4 stores scales in bfloat16, which would round these; ask",
        ),
        (
            INT8,
            PackConfig(format="n16_int8"),
            quantized.BF16,
            "n16_int8: the matrix cannot be held: row \\d+, inputs \\d+ to \\d+ keep",
        ),
    ],
)
def test_codes_are_never_rounded_again(scheme, config, scale_dtype, sentence, tmp_path):
    def finer(tensors):
        scales = {name: a for name, a in tensors.items() if name.endswith("_scale")}
        if scale_dtype == np.float16:  # not numbers of bfloat16
            scales = {k: a * np.float16(1.001) for k, a in scales.items()}
        return tensors | scales

    options = {"scale_dtype": scale_dtype, "changes": finer}
    quantized.write(tmp_path / "a", CONFIG, scheme, **options)
    with pytest.raises(InputError, match=rf"tensor '.*q_proj\.weight': .*{sentence}"):
        pack_checkpoint(io.open_blocks(tmp_path / "a"), tmp_path / "p", config)
    assert not (tmp_path / "p").exists()


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("kind", ["dense_int8", "n16_int8", "ell_int8"])
def test_the_code_that_rounding_here_does_not_give(kind, implementation):
    rng = np.random.default_rng(0)
    mask_OI = random_mask(rng, (32, 256), kind, 0.5)
    codes_OI = rng.integers(-128, -120, mask_OI.shape).astype(np.int8) * mask_OI
    leaf = pack_codes(kind, codes_OI, np.ones((32, 1), np.float32), mask_OI)
    for batch in (1, 3, 64):
        for sign in (-1, 1):
            x_BI = jnp.asarray(sign * rng.uniform(1, 2, (batch, 256)), jnp.float32)
            found = kernels.dot(x_BI, leaf, implementation=implementation)
            expected = kernels.dot(x_BI, leaf, implementation="reference")
            np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("kind", "scales", "width", "sentence"),
    [
        ("bitmask_float32", (4, 1), 0, "stores float32 weights, not integer codes"),
        ("dense_int8", (4, 2), 0, r"expected finite scales of shape \[4, 1\], found"),
        ("dense_int4", (4, 1), 128, r"expected finite scales of shape \[4, 2\]"),
        ("dense_int8", (4, 2), 128, "has a scale for each row, not for each 128"),
        ("group_int4", (4, 32), 8, "has a scale for each 16 inputs, not for each 8"),
    ],
)
def test_codes_that_a_type_cannot_hold(kind, scales, width, sentence):
    codes_OI = np.ones((4, 256), np.int8)
    with pytest.raises(InputError, match=f"{kind}: .*{sentence}"):
        pack_codes(kind, codes_OI, np.ones(scales, np.float32), width=width)


def test_scales_that_are_not_finite():
    codes_OI, scales = np.ones((4, 16), np.int8), np.full((4, 1), np.nan, np.float32)
    with pytest.raises(InputError, match="dense_int8: expected finite scales"):
        pack_codes("dense_int8", codes_OI, scales)
