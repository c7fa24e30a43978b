import numpy as np
import pytest

from sparse_jax.prune.matrix_row import found_pattern
from sparse_jax.sparsity import parse
from sparse_jax.sparsity.index_bits import index_bits

RNG = np.random.default_rng(0)


@pytest.mark.parametrize(
    "text", ["2:4", "1:4", "8:16", "5:16", "group:16@0.5", "group:8@0.75"]
)
def test_the_pattern_of_zeros_is_found(text):
    pattern = parse(text)
    mask = np.asarray(pattern.project(RNG.random((8, 64))))
    found = found_pattern(mask)
    assert str(found) == str(pattern)
    assert index_bits(found) == index_bits(pattern)


def test_other_zeros_take_a_bitmap_and_none_take_nothing():
    mask = RNG.random((8, 64)) < 0.5
    assert index_bits(found_pattern(mask)) == 1.0
    assert index_bits(found_pattern(mask[:, :63])) == 1.0  # no group divides these
    assert found_pattern(np.ones((8, 64), bool)) is None


@pytest.mark.parametrize("width", [63, 64])
def test_a_matrix_of_zeros_has_a_pattern(width):
    assert found_pattern(np.zeros((4, width), bool)) is not None
