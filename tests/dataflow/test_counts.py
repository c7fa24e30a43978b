"""Counts of masks, and the statistics of masks drawn at random."""

import numpy as np
import pytest

from sparse_jax.dataflow import draw_counts, draw_mask, slice_counts
from sparse_jax.dataflow.counts import (
    INPUT_SPREAD,
    KINDS,
    OUTPUT_SPREAD,
    sparsegpt_mask,
)
from sparse_jax.types import InputError


def slow_counts(mask, n_slices):
    parts = np.array_split(mask, n_slices, axis=1)
    return np.stack([part.sum(1) for part in parts], 1)


@pytest.mark.parametrize("shape", [(7, 100), (5, 4), (1, 1), (40, 33), (3, 0)])
@pytest.mark.parametrize("n_slices", [1, 2, 3, 7, 33, 60])
def test_slice_counts(shape, n_slices):
    mask = np.random.default_rng(0).random(shape) < 0.6
    expected = slow_counts(mask, n_slices)
    layouts = {
        "rows": mask,
        "columns": np.asfortranarray(mask),
        "every other": np.repeat(np.repeat(mask, 2, 0), 2, 1)[::2, ::2],
        "part": np.pad(mask, ((0, 0), (3, 2)))[:, 3 : 3 + shape[1]],
    }
    for name, layout in layouts.items():
        found = slice_counts(layout, n_slices)
        assert found.dtype == np.int32
        np.testing.assert_array_equal(found, expected, err_msg=name)


def test_long_slices_do_not_overflow():
    mask = np.ones((2, 70_000), bool)
    assert slice_counts(mask, 1).tolist() == [[70_000], [70_000]]
    assert slice_counts(mask.T, 2).tolist() == [[1, 1]] * 70_000


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.7, 0.9])
def test_drawn_counts_keep_their_share(kind, sparsity):
    rng = np.random.default_rng(0)
    counts = draw_counts(rng, (500, 100), sparsity, 7, kind)
    assert counts.shape == (500, 7) and counts.dtype == np.int32
    sizes = [15, 15, 14, 14, 14, 14, 14]
    assert (counts >= 0).all() and (counts <= sizes).all()
    assert counts.sum() / 50_000 == pytest.approx(1 - sparsity, abs=0.01)


def test_uniform_counts_are_binomial():
    counts = draw_counts(np.random.default_rng(0), (20_000, 30), 0.7, 3, "uniform")
    assert counts.var(0) == pytest.approx([10 * 0.3 * 0.7] * 3, rel=0.05)
    assert np.corrcoef(counts.T)[0, 1] == pytest.approx(0, abs=0.03)


@pytest.mark.parametrize("sparsity", [0.5, 0.7, 0.9])
def test_balanced_counts_never_drift(sparsity):
    counts = draw_counts(np.random.default_rng(0), (4000, 93), sparsity, 24, "balanced")
    sizes = np.array([4] * 21 + [3] * 3)
    share = (1 - sparsity) * sizes
    assert (counts >= np.floor(share)).all() and (counts <= np.ceil(share)).all()
    expected = share * np.arange(1, 4001)[:, None]
    assert np.abs(np.cumsum(counts, 0) - expected).max() <= 1
    # Offsets differ, so that the rows do not all round up at once.
    rows = counts.sum(1)
    assert rows.max() - rows.min() <= 4


def log_odds_sd(kept, n_weights):
    """As benchmarks/mask_spread.py measures it."""
    mean = kept.mean()
    variance = kept.var() - mean * (1 - mean) / n_weights
    return np.sqrt(variance) / (mean * (1 - mean))


def test_sparsegpt_masks_have_the_measured_spread():
    mask = sparsegpt_mask(np.random.default_rng(0), (1000, 1024), 0.7)
    blocks = mask.reshape(1000, 8, 128).sum((0, 2))
    np.testing.assert_array_equal(blocks, 128_000 - int(128_000 * 0.7))
    between_outputs = log_odds_sd(mask.mean(1), 1024)
    between_inputs = log_odds_sd(mask.mean(0), 1000)
    assert between_outputs == pytest.approx(OUTPUT_SPREAD, rel=0.1)
    assert between_inputs == pytest.approx(INPUT_SPREAD, rel=0.1)


def test_transposed_draws_fix_the_other_axis():
    rng = np.random.default_rng(0)
    counts = draw_counts(rng, (256, 300), 0.7, 1, "sparsegpt", transposed=True)
    # Rows of the stream are inputs now, and blocks of 128 of them are exact.
    kept = 128 * 300 - int(128 * 300 * 0.7)
    assert counts.reshape(2, 128).sum(1).tolist() == [kept, kept]


def test_ragged_last_block():
    mask = sparsegpt_mask(np.random.default_rng(0), (10, 130), 0.5)
    assert mask[:, 128:].sum() == 10


@pytest.mark.parametrize(
    ("kind", "sparsity"), [("2:4", 0.5), ("group:4", 0.75), ("block:4x2", 0.5)]
)
def test_patterns_are_kinds(kind, sparsity):
    mask = draw_mask(np.random.default_rng(0), (16, 32), sparsity, kind)
    assert mask.sum() == 16 * 32 * (1 - sparsity)
    groups = mask.reshape(16, 8, 4).sum(2)
    assert set(np.unique(groups)) <= ({2} if kind == "2:4" else {0, 4})
    counts = draw_counts(np.random.default_rng(0), (16, 32), sparsity, 8, kind)
    np.testing.assert_array_equal(counts, groups)
    rng = np.random.default_rng(0)
    counts = draw_counts(rng, (32, 16), sparsity, 4, kind, transposed=True)
    np.testing.assert_array_equal(counts, slice_counts(mask.T, 4))


def test_uniform_masks():
    mask = draw_mask(np.random.default_rng(0), (300, 400), 0.7, "uniform")
    assert mask.mean() == pytest.approx(0.3, abs=0.01)


@pytest.mark.parametrize("kind", [*KINDS, "group:2"])
@pytest.mark.parametrize("sparsity", [-0.1, 1.0, float("nan")])
def test_bad_sparsity(kind, sparsity):
    rng = np.random.default_rng(0)
    with pytest.raises(InputError, match=r"sparsity must be in \[0, 1\), found"):
        draw_counts(rng, (2, 2), sparsity, 1, kind)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (
            "striped",
            r"'striped' is unknown; choose one of .* or a pattern such",
        ),
        ("2:4", "'2:4' fixes a sparsity of its own, found 0.6 beside it"),
        ("group:2@0.5", "'group:2@0.5' fixes a sparsity of its own"),
        ("5:4", "'5:4' is unknown"),
        ("group:3", "input dimension to be a multiple of 3, found 2"),
    ],
)
def test_bad_kind(kind, message):
    with pytest.raises(InputError, match=message):
        draw_counts(np.random.default_rng(0), (2, 2), 0.6, 1, kind)


def test_bad_masks_and_slices():
    rng = np.random.default_rng(0)
    with pytest.raises(InputError, match="kind of counts"):
        draw_mask(rng, (2, 2), 0.5, "balanced")
    with pytest.raises(InputError, match="parts must be at least 1"):
        slice_counts(np.ones((2, 2), bool), 0)
