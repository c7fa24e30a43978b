"""Bits that say which weights a pattern keeps."""

import math

import pytest

from sparse_jax.sparsity import index_bits, parse


@pytest.mark.parametrize(
    ("pattern", "bits"),
    [
        ("2:4", 1.0),  # two bits for each of two kept of four
        ("1:4", 0.5),
        ("8:16", math.ceil(math.log2(12_870)) / 16),
        ("4:16", math.ceil(math.log2(1_820)) / 16),
        ("16:16", 0.0),
        ("unstructured@0.7", 1.0),
        ("group:16@0.5", 1 / 16),
        ("block:4x8@0.5", 1 / 32),
    ],
)
def test_index_bits(pattern, bits):
    assert index_bits(parse(pattern)) == bits


def test_dense_needs_none():
    assert index_bits(None) == 0.0
