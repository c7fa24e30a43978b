"""Stop texts: requests end early, and are cut where the first stop text begins."""

import string

import jax
import pytest
import tokenizers

from sparse_jax import io, models
from sparse_jax.infer import Engine, load_model, random_model
from sparse_jax.infer.request import cut
from sparse_jax.models import LlamaConfig
from sparse_jax.types import InputError

LETTERS = string.ascii_letters + " "
CONFIG = LlamaConfig(
    vocab_size=len(LETTERS),
    d_model=16,
    d_ff=24,
    n_layers=2,
    n_heads=2,
    max_seq_len=64,
    init_std=0.5,
)
PROMPTS = ["The", " lazy dog", "The quick brown", " fox"]


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    path = tmp_path_factory.mktemp("stop") / "model"
    # A token for each letter, so that any text is some tokens.
    vocab = {letter: number for number, letter in enumerate(LETTERS)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocab, unk_token=" "))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Split("", "isolated")
    tokenizer.decoder = tokenizers.decoders.Fuse()
    files = {"tokenizer.json": tokenizer.to_str().encode()}
    params = jax.jit(models.init, static_argnums=1)(jax.random.key(3), CONFIG)
    io.save(path, params, CONFIG, tokenizer_files=files)
    return Engine(load_model(path))


@pytest.fixture(scope="module")
def whole(engine):
    return engine.generate(PROMPTS, max_tokens=20)


def test_a_continuation_ends_at_the_first_stop_text(engine, whole):
    written = whole[0].text
    middle = len(written) // 2
    stop = written[middle : middle + 3]
    found = engine.generate(PROMPTS, max_tokens=20, stop=[stop])
    for one, full in zip(found, whole, strict=True):
        assert one.text == full.text.split(stop)[0]
        assert one.ids == full.ids[: len(one.ids)]
        stopped = stop in full.text or full.finish == "stop"
        assert one.finish == ("stop" if stopped else "length")
    assert len(found[0].ids) < len(whole[0].ids)


def test_a_stop_text_over_several_tokens_ends_the_request_at_once(engine, whole):
    text = whole[0].text
    stop = text[3:6]
    first = text.index(stop)
    [found] = engine.generate(PROMPTS[:1], max_tokens=20, stop=["no-such", stop])
    assert (found.text, len(found.ids)) == (text[:first], first + 3)


def test_stopped_requests_make_room_for_others(engine, whole):
    stop = whole[1].text[4:6]
    alone = [engine.generate([p], max_tokens=20, stop=[stop])[0] for p in PROMPTS]
    told = []
    together = engine.generate(
        PROMPTS, batch_size=2, max_tokens=20, stop=[stop], progress=told.append
    )
    assert together == alone
    assert sum(told) == len(PROMPTS) and len(told) > 2


def test_stop_texts_cut_in_turn():
    assert cut("a Q: b", ["Q:", "a"]) == ""
    assert cut("a b", []) == "a b"
    assert cut("abc", ["c", "bc"]) == "ab"  # "bc" is gone once "c" is


def test_bad_stop_texts(engine):
    for stop in ([""], "ab"):
        with pytest.raises(InputError, match="stop must be texts that are not empty"):
            engine.generate(["The"], stop=stop)
    nameless = Engine(random_model(CONFIG, "dense_float32"))
    with pytest.raises(InputError, match="stop texts need a tokenizer"):
        nameless.generate([[1, 2]], stop=["a"])
