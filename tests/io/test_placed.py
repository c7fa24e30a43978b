"""Shards of leaves filled from rows: several at a time, and the masks' bits."""

import jax
import numpy as np
import pytest

from sparse_jax import io
from sparse_jax import mesh as mesh_lib
from sparse_jax.io import masks_file, names, placed
from sparse_jax.io.placed import Part
from sparse_jax.tree import leaf_paths


def test_shards_are_filled_together_up_to_a_limit(monkeypatch):
    shards = [((start, start + 2), (0, 4)) for start in range(0, 10, 2)]
    assert list(placed._groups(shards, 4)) == [shards]
    monkeypatch.setattr(placed, "_TOGETHER", 64)
    groups = list(placed._groups(shards, 4))
    assert groups == [shards[:2], shards[2:4], shards[4:]]
    monkeypatch.setattr(placed, "_TOGETHER", 1)  # but one at least
    assert list(placed._groups(shards, 4)) == [[shard] for shard in shards]


@pytest.mark.parametrize("transposed", [False, True])
def test_a_part_takes_its_rows_and_columns(transposed):
    tensor = np.arange(70, dtype=np.float32).reshape(10, 7)
    target = np.zeros((3, 4) if transposed else (4, 3), np.float32)
    part = Part(target, (2, 6), (slice(3, 6),), transposed)
    for start in range(0, 10, 3):
        part.take(start, tensor[start : start + 3])
    expected = tensor[2:6, 3:6]
    np.testing.assert_array_equal(target, expected.T if transposed else expected)


def test_reading_starts_at_the_first_row_that_is_needed():
    seen = []

    def read(slot, start, stop):
        seen.append((start, stop))
        return [(start, np.ones((stop - start, 6), np.float32))]

    (slot,) = names.slots(["embed/embedding"], ())
    buffers = {((4, 8), (0, 6)): np.zeros((4, 6), np.float32)}
    placed._fill(buffers, slot.path, read)
    assert seen == [(4, 8)] and all(b.all() for b in buffers.values())


@pytest.mark.parametrize(("start", "stop"), [(0, 11), (8, 11), (3, 9), (9, 10)])
def test_rows_of_a_mask(tmp_path, params, config, start, stop, monkeypatch):
    monkeypatch.setattr(masks_file, "_PANEL", 100)  # a few rows at a time
    rng = np.random.default_rng(0)
    masks = jax.tree.map(lambda leaf: None, params)
    up = rng.random(params["layers"]["mlp"]["up"]["kernel"].shape) < 0.5
    masks["layers"]["mlp"]["up"]["kernel"] = up
    io.save_masks(tmp_path / "m", masks)
    (slot,) = names.slots(["layers/mlp/up/kernel"], [1])
    entry = masks_file.open_masks(tmp_path / "m", config)[slot.name]
    found = {}
    for first, rows in masks_file.mask_rows(entry, up[1].T.shape, start, stop):
        found |= {first + i: row for i, row in enumerate(rows)}
    assert set(range(start, stop)) <= set(found) <= set(range(start - 7, stop))
    for row, kept in found.items():
        np.testing.assert_array_equal(kept, up[1].T[row])


def test_a_mesh_of_one_device_changes_nothing(tmp_path, params, config):
    io.save(tmp_path / "a", params, config)
    mesh = mesh_lib.make_mesh()
    found = io.resolve(tmp_path / "a", mesh)
    for path, leaf in leaf_paths(found.params).items():
        assert leaf.sharding.mesh == mesh
        np.testing.assert_array_equal(leaf, leaf_paths(params)[path])
