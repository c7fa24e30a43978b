"""The engine: the same text whatever the batch, the buckets and the storage type."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from sparse_jax import io
from sparse_jax.data.tokenizer import Tokenizer
from sparse_jax.infer import Engine, load_model, random_model, repack, steps
from sparse_jax.infer.steps import prefill, step
from sparse_jax.io.packed_blocks import unpack
from sparse_jax.models import LlamaConfig, RopeConfig, forward
from sparse_jax.models import cache as caches
from sparse_jax.types import InputError

CONFIG = LlamaConfig(
    vocab_size=48,
    d_model=32,
    d_ff=48,
    n_layers=2,
    n_heads=4,
    n_kv_heads=2,
    max_seq_len=128,
    eos_token_id=None,
)
PROMPTS = [[1, 5, 9, 2], [7], [3] * 12, [4, 4, 8, 20, 30, 11], [2, 9]]


@pytest.fixture(scope="module")
def model():
    return random_model(CONFIG, "dense_float32")


@functools.partial(jax.jit, static_argnames="config")
def logits(params, tokens_BT, config):
    return forward(params, tokens_BT, config)


def greedy(model, prompt, n):
    """By the whole model at every token."""
    params, _ = unpack(model)
    ids = list(prompt)
    for _ in range(n):
        tokens_BT = np.zeros((1, CONFIG.max_seq_len), np.int32)
        tokens_BT[0, : len(ids)] = ids
        found = logits(params, tokens_BT, model.config)[0, len(ids) - 1]
        ids.append(int(found.argmax()))
    return ids[len(prompt) :]


def ids_of(tokens):
    return [token.id for token in tokens]


def test_greedy_tokens_are_those_of_the_whole_model(model, monkeypatch):
    engine = Engine(model)
    for prompt in PROMPTS[:2]:
        assert ids_of(engine.stream(prompt, max_tokens=8)) == greedy(model, prompt, 8)
    # More than one piece, and to the very end of the context.
    monkeypatch.setattr(steps, "BUCKETS", (16,))
    long = np.random.default_rng(0).integers(0, 48, 118).tolist()
    found = ids_of(engine.stream(long, max_tokens=50))
    assert len(found) == 11 and found == greedy(model, long, 11)


def test_a_batch_writes_what_each_prompt_alone_does(model):
    """Fewer slots than prompts, so that some wait, leave, and the batch shrinks."""
    engine = Engine(model)
    settings = {"max_tokens": 9, "temperature": 0.9, "top_k": 30, "top_p": 0.95}
    for options in ({"max_tokens": 9}, settings):
        found = engine.generate(PROMPTS, batch_size=2, seed=5, **options)
        assert engine.rates.prompt_tokens == sum(map(len, PROMPTS))
        assert engine.rates.tokens == 8 * len(PROMPTS)
        for number, (prompt, completion) in enumerate(zip(PROMPTS, found, strict=True)):
            alone = ids_of(engine.stream(prompt, seed=5 + number, **options))
            assert list(completion.ids) == alone
            assert completion.finish == "length"
            assert completion.prompt_tokens == len(prompt)


def test_a_conversation_reads_only_what_is_new_and_compiles_once(model):
    engine = Engine(model)
    said = [1, 2, 3]
    for turn in range(2):
        said += [turn, 7]
        said += ids_of(engine.stream(said, max_tokens=4))
    compiled = prefill._cache_size(), step._cache_size()
    answers = []
    for turn in range(5):
        prompt = [*said, turn, 5]
        answer = ids_of(engine.stream(prompt, max_tokens=4))
        # The answer but for its last token was read when it was written.
        assert engine.rates.prompt_tokens <= 4
        answers.append((prompt, answer))
        said = prompt + answer
    assert (prefill._cache_size(), step._cache_size()) == compiled
    for prompt, answer in answers:
        assert answer == ids_of(Engine(model).stream(prompt, max_tokens=4))
    assert engine.cache.capacity == 64
    list(engine.stream(said, max_tokens=64))  # grows; what was held is kept
    assert engine.cache.capacity == 128 and engine.rates.prompt_tokens <= 2
    engine.forget()
    list(engine.stream(said, max_tokens=1))
    assert engine.rates.prompt_tokens == len(said)


def test_an_abandoned_stream_leaves_a_good_cache(model):
    engine = Engine(model)
    stream = engine.stream(PROMPTS[0], max_tokens=20)
    said = PROMPTS[0] + [next(stream).id for _ in range(3)]
    stream.close()
    assert ids_of(engine.stream(said, max_tokens=3)) == greedy(model, said, 3)
    other = [*said[:5], (said[5] + 1) % 48]  # another turn from the middle on
    assert ids_of(engine.stream(other, max_tokens=3)) == greedy(model, other, 3)
    assert engine.rates.prompt_tokens == 1


def test_a_stream_that_another_one_has_interrupted_is_refused(model):
    engine = Engine(model)
    first, second = (engine.stream(prompt, max_tokens=3) for prompt in PROMPTS[:2])
    next(second)
    begun = next(first).id
    with pytest.raises(InputError, match="the engine has begun another stream"):
        next(second)
    assert [begun, *ids_of(first)] == greedy(model, PROMPTS[0], 3)


def test_generation_ends_after_the_end_of_sequence(model):
    written = greedy(model, PROMPTS[0], 6)
    end = written[3]
    wanted = written[: written.index(end) + 1]
    text = "".join(map(chr, wanted[:-1]))
    engine = Engine(dataclasses.replace(model, tokenizer=Letters(end)))
    tokens = list(engine.stream(PROMPTS[0], max_tokens=6))
    assert ids_of(tokens) == wanted and "".join(map(str, tokens)) == text
    (found, _) = engine.generate([PROMPTS[0], [7]], max_tokens=6)
    assert list(found.ids) == wanted and found.finish == "stop" and found.text == text


class Letters(Tokenizer):
    """Every token is the character of its number."""

    def __init__(self, end):
        self.vocab_size, self.bos_id, self.eos_id, self.files = 48, None, end, {}

    def encode_batch(self, texts):
        raise NotImplementedError

    def encode_with_bytes(self, text):
        raise NotImplementedError

    def decode(self, ids):
        return "".join(map(chr, ids))

    def piece(self, token):
        return chr(token)


def test_dynamic_rope_reads_all_again_beyond_its_length(model):
    rope = RopeConfig(kind="dynamic", factor=4.0)
    config = dataclasses.replace(CONFIG, rope=rope, max_seq_len=16)
    engine = Engine(dataclasses.replace(model, config=config))
    said = [1, 2, 3, *ids_of(engine.stream([1, 2, 3], max_tokens=4))]
    list(engine.stream([*said, 5], max_tokens=1))
    assert engine.rates.prompt_tokens <= 2
    list(engine.stream([*said, 5], max_tokens=20))
    assert engine.rates.prompt_tokens == len(said) + 1


def test_every_weight_is_an_argument(model):
    """None may be a constant of the compiled function, which would be a second copy."""
    cache, one = caches.empty(CONFIG, 1, 64), np.ones(1, np.int32)
    text = step.lower(model.params, cache, one, one, CONFIG).as_text()
    n_weights = len(jax.tree.leaves(model.params))
    assert text.count("%arg") > n_weights and "sparse_jax_dot" in text
    assert 'dense<"0x' not in text  # how constants of any size are written


@pytest.mark.parametrize(
    ("prompt", "options", "sentence"),
    [
        (
            [1] * 129,
            {},
            "the prompt has 129 tokens, more than the model's context of 1",
        ),
        ([], {}, "the prompt is empty"),
        ([48], {}, r"the prompt's ids must be in \[0, 48\)"),
        ("text", {}, "the model has no tokenizer; put one"),
        ([1], {"max_tokens": 0}, "max_tokens must be >= 1, found 0"),
        ([1], {"temperature": -1.0}, "temperature must be >= 0, found -1.0"),
        ([1], {"top_k": -1}, "top_k must be >= 0"),
        ([1], {"top_p": 0.0}, r"top_p must be in \(0, 1\], found 0.0"),
        ([1], {"top_p": 1.5}, r"top_p must be in \(0, 1\], found 1.5"),
        ([1], {"seed": -1}, "seed must be in"),
    ],
)
def test_bad_input_is_refused_at_once(prompt, options, sentence, model):
    engine = Engine(model)
    with pytest.raises(InputError, match=sentence):
        engine.stream(prompt, **options)  # nothing is taken from it
    with pytest.raises(InputError, match=sentence):
        engine.generate([prompt], **options)


def test_no_prompts_are_refused(model):
    with pytest.raises(InputError, match="at least one prompt"):
        Engine(model).generate([])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_directories_are_packed_exactly(dtype, tmp_path):
    config = dataclasses.replace(CONFIG, tie_embeddings=True, attention_bias=True)
    params, _ = unpack(random_model(config, "dense_float32"))
    io.save(tmp_path / "model", params, config, dtype=dtype)
    loaded = load_model(tmp_path / "model")
    assert loaded.params["layers"]["mlp"]["up"]["kernel"][0].format == f"dense_{dtype}"
    found, _ = unpack(loaded)
    jax.tree.map(np.testing.assert_array_equal, found, io.load(tmp_path / "model"))


def test_a_repacked_model_is_rounded_only_by_the_type(model):
    exact, _ = unpack(repack(model, "n16_float32"))
    jax.tree.map(np.testing.assert_array_equal, exact, unpack(model)[0])
    rounded, _ = unpack(repack(model, "dense_int8"))
    before, after = (
        np.asarray(p["layers"]["mlp"]["up"]["kernel"]) for p in (exact, rounded)
    )
    assert 0 < np.abs(before - after).max() < 0.01 * np.abs(before).max()
