"""The loss on responses against one example at a time."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparse_jax import models
from sparse_jax.data import Examples
from sparse_jax.evaluate import evaluate_responses
from sparse_jax.models import LlamaConfig
from sparse_jax.types import InputError

CONFIG = LlamaConfig(
    vocab_size=40, d_model=16, d_ff=24, n_layers=2, n_heads=2, max_seq_len=24
)


@pytest.fixture(scope="module")
def params():
    return models.init(jax.random.key(3), CONFIG)


def make(lengths, **options):
    rng = np.random.default_rng(0)
    size = sum(lengths)
    return Examples(
        tokens=rng.integers(0, 40, size),
        response=rng.integers(0, 2, size).astype(np.uint8),
        nbytes=rng.integers(1, 4, size),
        lengths=np.array(lengths),
        **options,
    )


def alone(params, examples):
    """Sum of losses, tokens and bytes, of every example by itself."""
    total, tokens, nbytes, start = 0.0, 0, 0, 0
    for length in examples.lengths.tolist():
        here = slice(start, start + length)
        ids, written = examples.tokens[here], examples.response[here][1:] > 0
        logits = models.forward(params, jnp.asarray(ids[None]), CONFIG)[0]
        log_p = jax.nn.log_softmax(logits[:-1])[np.arange(length - 1), ids[1:]]
        total -= float(np.asarray(log_p)[written].sum())
        tokens += int(written.sum())
        nbytes += int(examples.nbytes[here][1:][written].sum())
        start += length
    return total / tokens, tokens, nbytes


@pytest.mark.parametrize("window", [16, 24])
def test_rows_and_padding_change_nothing(params, window):
    examples = make([9, 12, 5, 7, 3, 14, 2, 6])
    loss, tokens, nbytes = alone(params, examples)
    found = evaluate_responses(params, CONFIG, examples, window=window, batch_size=3)
    assert (found.tokens, found.bytes) == (tokens, nbytes)
    assert found.loss == pytest.approx(loss, rel=1e-5)
    bits = loss * tokens / np.log(2) / nbytes
    assert found.bits_per_byte == pytest.approx(bits, rel=1e-5)


def test_nothing_that_fits(params):
    with pytest.raises(InputError, match="none of the 1 held-out examples fits into a"):
        evaluate_responses(params, CONFIG, make([20]), window=8)
    with pytest.raises(InputError, match="25"):
        evaluate_responses(params, CONFIG, make([9]), window=25)
