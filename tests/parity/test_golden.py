"""Logits against those of transformers, from a committed file: no torch needed."""

import dataclasses
import functools

import jax
import numpy as np
import parity_cases as cases
import pytest

from sparse_jax import io
from sparse_jax.models import forward

PROMPT = "Once upon a time"
CONTINUATION = (
    "Once upon a time, there was a little girl named Lily. She loved to play outside "
    "in the park. One day, she saw a big, red ball. She wanted to play with it, but it "
    "was too high."
)


@pytest.fixture(scope="module")
def golden():
    with np.load(cases.GOLDEN, allow_pickle=False) as arrays:
        return dict(arrays)


@functools.partial(jax.jit, static_argnums=2)
def logits(params, tokens_BT, config):
    return forward(params, tokens_BT, config)


@pytest.mark.parametrize("case", cases.CASES)
def test_every_option_agrees_with_transformers(case, golden, tmp_path):
    directory = cases.write(case, tmp_path / case)
    config = io.load_config(directory)
    found = logits(io.load(directory), cases.tokens(case), config)
    cases.assert_agree(np.asarray(found), golden[case])


@pytest.mark.parametrize(
    "case",
    ["norm_eps", "rope_theta", "rope_linear", "rope_dynamic_long", "rope_llama3_v5"],
)
def test_an_option_left_out_is_noticed(case, golden, tmp_path):
    """The cases are strong enough: without its option, each of them disagrees."""
    directory = cases.write(case, tmp_path / case)
    plain = io.load_config(cases.write("plain", tmp_path / "plain"))
    plain = dataclasses.replace(plain, max_seq_len=64)
    found = logits(io.load(directory), cases.tokens(case), plain)
    assert np.abs(np.asarray(found) - golden[case]).max() > 0.05


@pytest.mark.parametrize("name", cases.REAL)
def test_real_models_agree_with_transformers(name, golden, shared_data):
    model = io.resolve(shared_data / name)
    found = logits(model.params, cases.real_tokens(), model.config)
    found = np.asarray(found)[:, golden["real_positions"]]
    cases.assert_agree(found, golden[name])


def test_stories_continue_greedily(shared_data):
    model = io.resolve(shared_data / "stories260K-hf")
    ids = [model.config.bos_token_id, *model.tokenizer.encode(PROMPT).tolist()]
    tokens_1T = np.zeros((1, 128), np.int32)  # causal: what follows does not matter
    text = PROMPT
    while len(text) < len(CONTINUATION) and len(ids) < tokens_1T.shape[1]:
        tokens_1T[0, : len(ids)] = ids
        logits_V = logits(model.params, tokens_1T, model.config)[0, len(ids) - 1]
        ids.append(int(logits_V.argmax()))
        text = model.tokenizer.decode(ids[1:]).strip()
    assert text == CONTINUATION
