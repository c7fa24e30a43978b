"""A model read block by block has the same numbers as one in memory."""

import dataclasses

import jax
import numpy as np
import pytest

from sparse_jax import io, models
from sparse_jax.evaluate import blockwise, evaluate, evaluate_blocks
from sparse_jax.models import Compute, LlamaConfig
from sparse_jax.types import InputError

CONFIG = LlamaConfig(
    vocab_size=500,
    d_model=16,
    d_ff=24,
    n_layers=2,
    n_heads=2,
    max_seq_len=32,
    init_std=0.3,  # far from the uniform distribution
)


@pytest.fixture(scope="module")
def untied():
    return jax.jit(models.init, static_argnums=1)(jax.random.key(0), CONFIG)


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def model(request, untied, tmp_path_factory):
    """A model in memory, and the same on disk."""
    config = dataclasses.replace(CONFIG, tie_embeddings=request.param)
    params = {k: v for k, v in untied.items() if not (request.param and k == "lm_head")}
    path = tmp_path_factory.mktemp("model") / "model"
    io.save(path, params, config)
    return params, config, io.open_blocks(path)


@pytest.fixture(scope="module")
def stream():
    rng = np.random.default_rng(0)
    ids = rng.integers(0, CONFIG.vocab_size, 203, dtype=np.int32)
    return ids, rng.integers(0, 5, 203, dtype=np.int32)


def same(found, expected):
    for name, value in dataclasses.asdict(expected).items():
        value = pytest.approx(value, rel=1e-6) if isinstance(value, float) else value
        assert getattr(found, name) == value, name


def test_the_same_numbers(model, stream, monkeypatch):
    params, config, blocks = model
    options = {"window": 16, "batch_size": 4, "data": "text", "tokenizer": "t"}
    expected = evaluate(params, config, *stream, **options)
    assert expected.loss > 6.5  # the check would not see much of log(500)
    same(evaluate_blocks(blocks, *stream, **options), expected)
    # 12 windows in two pieces, the second shorter, and two panels of 256 and 244 rows.
    monkeypatch.setattr(blockwise, "_PIECE", 8 * 16)
    monkeypatch.setattr(blockwise, "_LOGITS", 1)
    calls = []
    options["progress"] = lambda done, total: calls.append((done, total))
    same(evaluate_blocks(blocks, *stream, **options), expected)
    assert calls == [(1, 4), (2, 4), (3, 4), (4, 4)]


@pytest.mark.parametrize("model", [False], indirect=True)
def test_the_activations_dtype_is_used(model, stream):
    params, config, blocks = model
    options = {"window": 16, "batch_size": 4}
    half = Compute(dtype="bfloat16", loss_chunk=64)
    expected = evaluate(params, config, *stream, **options, compute=half)
    found = evaluate_blocks(blocks, *stream, **options, compute=half)
    exact = evaluate_blocks(blocks, *stream, **options)
    # Rounding depends on the program: of the difference that bfloat16 makes, little.
    assert abs(found.loss - expected.loss) < 0.2 * abs(exact.loss - expected.loss)


def test_bad_input_is_refused_alike(model, stream):
    params, config, blocks = model
    ids, nbytes = stream
    for bad, message in (
        ((ids[:9], nbytes[:9], 16), "9 tokens are fewer than one window of 16"),
        ((ids, nbytes, 64), "a sequence of 64 tokens is longer than the model allows"),
        ((ids + 400, nbytes, 16), "is outside the model's vocabulary of 500"),
        ((ids, 0 * nbytes, 16), "its tokens stand for no text"),
        ((ids, nbytes, 1), "evaluate.window must be >= 2, got 1"),
    ):
        for call in (
            lambda *args, **options: evaluate(params, config, *args, **options),
            lambda *args, **options: evaluate_blocks(blocks, *args, **options),
        ):
            with pytest.raises(InputError, match=message):
                call(*bad[:2], window=bad[2], batch_size=4)


def test_a_broken_model_is_said(model, stream):
    blocks = model[2]

    class Broken:
        config = blocks.config
        embed, leaf, rows = blocks.embed, blocks.leaf, blocks.rows

        def layer(self, index):
            layer = blocks.layer(index)
            layer["mlp_norm"] = {"scale": layer["mlp_norm"]["scale"] * np.nan}
            return layer

    with pytest.raises(InputError, match="text: the loss is nan"):
        evaluate_blocks(Broken(), *stream, window=16, batch_size=4, data="text")
