"""Greedy text of real models: every lossless type writes what the dense one writes."""

import dataclasses

import jax
import ml_dtypes
import numpy as np
import pytest

from sparse_jax.infer import Engine, load_model, repack
from sparse_jax.infer.runner import Runner
from sparse_jax.io import PackedModel
from sparse_jax.kernels import FORMATS, Packed, pack
from sparse_jax.models import cache as caches

PROMPT = "Once upon a time"
STORY = (
    "Once upon a time, there was a little girl named Lily. She loved to play outside "
    "in the park. One day, she saw a big, red ball. She wanted to play with it, but it "
    "was too high."
)
LOSSLESS = [name for name, kind in FORMATS.items() if kind.lossless]


def prune(model: PackedModel, dtype: str) -> PackedModel:
    """The larger 8 of every 16 weights, or half of rows of another length, rounded."""

    def pruned(leaf):
        if not isinstance(leaf, Packed):
            return leaf
        w_OI = leaf.unpack()
        size = 16 if w_OI.shape[1] % 16 == 0 else w_OI.shape[1]
        blocks = np.abs(w_OI).reshape(len(w_OI), -1, size)
        rank = (-blocks).argsort(axis=-1, kind="stable").argsort(axis=-1)
        w_OI = np.where((rank < size // 2).reshape(w_OI.shape), w_OI, 0)
        if dtype == "bfloat16":
            w_OI = w_OI.astype(ml_dtypes.bfloat16).astype(np.float32)
        return jax.tree.map(jax.device_put, pack("dense_float32", w_OI))

    layers = jax.tree.map(
        pruned, model.params["layers"], is_leaf=lambda leaf: isinstance(leaf, Packed)
    )
    return dataclasses.replace(model, params=model.params | {"layers": layers})


def text_of(model, n_tokens):
    """Greedy text by single steps from the first token on, which compiles only once."""
    tokenizer, one = model.tokenizer, np.ones(1, np.int32)
    ids = [tokenizer.bos_id, *tokenizer.encode(PROMPT).tolist()]
    n_prompt, runner = len(ids), Runner(model)
    cache = caches.empty(model.config, 1, 128)
    for position in range(n_prompt + n_tokens):
        token_B, cache = runner.step(cache, np.array([ids[position]]), one, {})
        if position >= n_prompt - 1:
            ids.append(int(token_B[0]))
    return tokenizer.decode(ids[1:])


def test_the_story_is_told_as_by_transformers(shared_data):
    engine = Engine.load(shared_data / "stories260K-hf")
    found = PROMPT + "".join(map(str, engine.stream(PROMPT, max_tokens=60)))
    assert found.startswith(STORY)


@pytest.mark.parametrize(
    "name", ["stories260K-hf", pytest.param("babyllama-hf", marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_lossless_types_write_the_same_text(name, dtype, shared_data):
    model = prune(load_model(shared_data / name), dtype)
    wanted = text_of(model, 60)
    assert len(wanted) > len(PROMPT) + 40
    kinds = [kind for kind in LOSSLESS if FORMATS[kind].dtype == dtype]
    assert len(kinds) == 3
    for kind in kinds:
        packed = repack(model, kind)
        assert packed.params["layers"]["mlp"]["up"]["kernel"][0].format == kind
        assert text_of(packed, 60) == wanted, kind
