"""Rows against a slow, plain reading of the contract."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparse_jax.data.packing import make_stream


def plain_row(documents, row, seq_len, isolate):
    """One row from the documents as Python lists, token by token."""
    flat = [
        (token, d, i) for d, doc in enumerate(documents) for i, token in enumerate(doc)
    ]
    window = flat[row * seq_len : row * seq_len + seq_len + 1]
    tokens, targets, weights, segments, positions = [], [], [], [], []
    segment = position = 0
    for t in range(seq_len):
        token, document, _ = window[t]
        if t and document != window[t - 1][1]:
            segment, position = segment + 1, 0
        tokens.append(token)
        targets.append(window[t + 1][0])
        weights.append(float(not isolate or window[t + 1][1] == document))
        segments.append(segment)
        positions.append(position if isolate else t)
        position += 1
    return tokens, targets, weights, segments, positions


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=12),
    seq_len=st.integers(1, 10),
    seed=st.integers(0, 9),
    isolate=st.booleans(),
)
def test_rows_are_what_the_contract_says(lengths, seq_len, seed, isolate):
    lengths = np.array(lengths)
    tokens = np.arange(lengths.sum(), dtype=np.uint16)
    stream = make_stream(tokens, lengths, seed)
    split = np.split(tokens, np.cumsum(lengths)[:-1])
    order = np.random.default_rng(seed).permutation(len(lengths))
    documents = [split[d].tolist() for d in order]
    count = stream.num_rows(seq_len)
    assert count == (lengths.sum() - 1) // seq_len
    if not count:
        return
    rows = np.arange(count)[::-1].copy()
    batch = stream.pack(rows, seq_len=seq_len, isolate_documents=isolate)
    for b, row in enumerate(rows):
        want = plain_row(documents, row, seq_len, isolate)
        for got, expected in zip(batch, want, strict=True):
            assert got[b].tolist() == expected


def test_dtypes():
    stream = make_stream(np.arange(9, dtype=np.uint32), np.array([4, 5]), seed=0)
    batch = stream.pack(np.array([0, 1]), seq_len=4, isolate_documents=True)
    assert [a.dtype for a in batch] == [
        np.int32,
        np.int32,
        np.float32,
        np.int32,
        np.int32,
    ]
    assert all(a.shape == (2, 4) for a in batch)


def test_every_token_is_a_target_once():
    tokens = np.arange(101, dtype=np.uint16)
    stream = make_stream(tokens, np.array([50, 51]), seed=3)
    batch = stream.pack(np.arange(10), seq_len=10, isolate_documents=False)
    assert len(set(batch.targets.ravel().tolist())) == 100


@pytest.mark.parametrize("seed", [0, 1])
def test_order_follows_the_seed(seed):
    tokens, lengths = np.arange(60, dtype=np.uint16), np.full(20, 3)
    again = make_stream(tokens, lengths, seed)
    np.testing.assert_array_equal(
        make_stream(tokens, lengths, seed).starts, again.starts
    )
    assert (make_stream(tokens, lengths, seed + 1).starts != again.starts).any()
    assert sorted(again.starts) == list(range(0, 60, 3))
