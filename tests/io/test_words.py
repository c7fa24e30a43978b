"""Codes in words, against one written bit by bit."""

import numpy as np
import pytest

from sparse_jax.io import words
from tests.io import quantized_models as quantized


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("codes", [1, 10, 32, 43, 172])
def test_words_are_as_one_writes_them_bit_by_bit(bits, codes):
    limit = 1 << bits - 1
    given = np.random.default_rng(0).integers(-limit, limit, (7, codes)).astype("i1")
    found = words.pack(given, bits)
    assert found.shape == (7, words.count(codes, bits))
    assert np.array_equal(found, quantized.pack_words(given, bits))
    assert np.array_equal(words.unpack(found, bits, codes), given)


def test_more_rows_than_are_packed_at_once(monkeypatch):
    given = np.random.default_rng(0).integers(-4, 4, (9, 11)).astype("i1")
    whole = words.pack(given, 3)
    monkeypatch.setattr(words, "_AT_ONCE", 22)
    assert np.array_equal(words.pack(given, 3), whole)
