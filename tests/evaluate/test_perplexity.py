"""Evaluation: the contract of windows, against a loop in numpy."""

import dataclasses
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparse_jax import models
from sparse_jax.evaluate import EvaluateConfig, evaluate
from sparse_jax.evaluate import perplexity as module
from sparse_jax.models import Compute, LlamaConfig, RopeConfig
from sparse_jax.types import InputError

CONFIG = LlamaConfig(
    vocab_size=64, d_model=32, d_ff=48, n_layers=2, n_heads=2, max_seq_len=32
)


@pytest.fixture(scope="module")
def params():
    return models.init(jax.random.key(0), dataclasses.replace(CONFIG, init_std=0.3))


@pytest.fixture(scope="module")
def stream():
    rng = np.random.default_rng(0)
    ids = rng.integers(0, CONFIG.vocab_size, 203, dtype=np.int32)
    return ids, rng.integers(0, 5, 203, dtype=np.int32)


def by_hand(params, ids, nbytes, window, config=CONFIG):
    """One window at a time, float64 log-softmax, nothing shared with the library."""
    total, tokens, total_bytes = 0.0, 0, 0
    for start in range(0, len(ids) - window + 1, window):
        piece = ids[start : start + window]
        logits = models.forward(params, jnp.asarray(piece[None]), config)[0]
        logits = np.asarray(logits, np.float64)
        for t in range(window - 1):
            row = logits[t] - logits[t].max()
            total -= row[piece[t + 1]] - math.log(np.exp(row).sum())
            tokens += 1
            total_bytes += int(nbytes[start + t + 1])
    return total / tokens, tokens, total_bytes


@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_equals_the_loop(params, stream, batch_size):
    loss, tokens, total_bytes = by_hand(params, *stream, window=16)
    result = evaluate(params, CONFIG, *stream, window=16, batch_size=batch_size)
    assert tokens == 12 * 15  # 203 = 12 * 16 + a tail of 11 that is dropped
    assert (result.tokens, result.bytes) == (tokens, total_bytes)
    assert (result.window, result.stride) == (16, 16)
    np.testing.assert_allclose(result.loss, loss, rtol=1e-6)
    assert result.perplexity == math.exp(result.loss)
    bits = result.loss * tokens / math.log(2) / total_bytes
    np.testing.assert_allclose(result.bits_per_byte, bits, rtol=1e-12)


def test_tail_and_first_tokens_of_windows_do_not_count(params, stream):
    ids, nbytes = stream
    other = nbytes.copy()
    other[::16] += 7
    other[192:] += 9
    first = evaluate(params, CONFIG, ids, nbytes, window=16)
    assert evaluate(params, CONFIG, ids, other, window=16) == first
    assert evaluate(params, CONFIG, ids[:192], nbytes[:192], window=16) == first


def test_uniform_model_has_the_loss_of_chance(stream):
    zeros = jax.tree.map(lambda x: 0 * x, models.init(jax.random.key(0), CONFIG))
    result = evaluate(zeros, CONFIG, *stream, window=16)
    np.testing.assert_allclose(result.perplexity, CONFIG.vocab_size, rtol=1e-5)


def test_compiles_once_for_all_models_and_streams(params, stream):
    ids, nbytes = stream
    before = module._loss_sum._cache_size()
    for scale in (1.0, 0.5):
        for length in (203, 150):
            scaled = jax.tree.map(lambda x, s=scale: s * x, params)
            part = ids[:length], nbytes[:length]
            evaluate(scaled, CONFIG, *part, window=8, batch_size=3)
    assert module._loss_sum._cache_size() == before + 1


def test_loss_in_pieces_is_the_same(params, stream):
    whole = evaluate(params, CONFIG, *stream, window=16)
    pieces = evaluate(
        params, CONFIG, *stream, window=16, compute=Compute(loss_chunk=40)
    )
    np.testing.assert_allclose(pieces.loss, whole.loss, rtol=1e-6)


def test_dynamic_rope_sees_the_whole_window(params, stream):
    rope = RopeConfig(kind="dynamic", factor=2.0)
    config = dataclasses.replace(CONFIG, max_seq_len=24, rope=rope)
    loss, _, _ = by_hand(params, *stream, window=40, config=config)
    result = evaluate(params, config, *stream, window=40)
    np.testing.assert_allclose(result.loss, loss, rtol=1e-6)


def test_result_is_plain_data(params, stream):
    result = evaluate(
        params, CONFIG, *stream, window=16, data="x.txt", split="test", tokenizer="abc"
    )
    row = json.loads(json.dumps(result.numbers()))
    assert list(row) == [
        *("loss", "perplexity", "bits_per_byte", "tokens", "bytes"),
        *("window", "stride", "data", "split", "tokenizer"),
    ]
    assert (row["data"], row["split"], row["tokenizer"]) == ("x.txt", "test", "abc")


@pytest.mark.parametrize(
    ("ids", "window", "message"),
    [
        (np.zeros(10, np.int32), 16, "10 tokens are fewer than one window of 16"),
        (np.zeros(100, np.int32), 33, "longer than the model allows"),
        (np.full(40, 64, np.int32), 16, "token id 64 is outside.*vocabulary of 64"),
        (np.full(40, -1, np.int32), 16, "token id -1 is outside"),
        (np.zeros(40, np.int32), 1, "evaluate.window must be >= 2, got 1"),
    ],
)
def test_bad_input(params, ids, window, message):
    with pytest.raises(InputError, match=message):
        evaluate(params, CONFIG, ids, np.ones_like(ids), window=window, data="x.txt")


def test_bad_byte_counts(params):
    ids = np.zeros(40, np.int32)
    with pytest.raises(InputError, match="stand for no text"):
        evaluate(params, CONFIG, ids, ids, window=16)
    with pytest.raises(InputError, match=r"evaluate\.batch_size must be >= 1"):
        EvaluateConfig(batch_size=0)


def test_nan_is_loud(params, stream):
    broken = jax.tree.map(lambda x: x * np.nan, params)
    with pytest.raises(InputError, match=r"x\.txt: the loss is nan"):
        evaluate(broken, CONFIG, *stream, window=16, data="x.txt")


def test_absurd_loss_is_infinite_perplexity(params, stream):
    absurd = params | {"lm_head": jax.tree.map(lambda x: 1e4 * x, params["lm_head"])}
    result = evaluate(absurd, CONFIG, *stream, window=16)
    assert result.loss > 700
    assert result.perplexity == math.inf
    assert result.numbers()["perplexity"] is None
    json.dumps(result.numbers(), allow_nan=False)
