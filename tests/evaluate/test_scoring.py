"""Log-likelihoods: against a loop over requests, one token at a time."""

import dataclasses
import itertools
import json
import math

import jax
import numpy as np
import pytest
import tokenizers

from sparse_jax import data, models
from sparse_jax.data.tokenizer import JsonTokenizer
from sparse_jax.evaluate import Scorer
from sparse_jax.evaluate.encoding import Encoder, special_tokens
from sparse_jax.evaluate.logprobs import token_logprobs
from sparse_jax.evaluate.rows import Row, buckets, share, windows
from sparse_jax.models import Compute, LlamaConfig
from sparse_jax.types import InputError

CONFIG = LlamaConfig(
    vocab_size=320,
    d_model=16,
    d_ff=24,
    n_layers=2,
    n_heads=2,
    max_seq_len=40,
    init_std=0.3,
)
TEXT = "The quick brown fox jumps over the lazy dog, and the dog barks at the fox. "
REQUESTS = [
    ("The quick", " brown fox"),
    ("The quick ", "brown fox jumps over the lazy dog"),
    ("", "The dog"),
    ("the dog barks at", " the"),
    (TEXT * 3, " and the fox"),
    ("The lazy", " dog barks"),
]


@pytest.fixture(scope="module")
def tokenizer():
    return data.train_bpe([TEXT * 9], vocab_size=300)


@pytest.fixture(scope="module")
def params():
    return jax.jit(models.init, static_argnums=1)(jax.random.key(0), CONFIG)


@pytest.fixture(scope="module")
def scorer(params, tokenizer):
    return Scorer(params, CONFIG, tokenizer, batch_size=3)


@jax.jit
def logits_of(params, ids_T):
    return models.forward(params, ids_T[None], CONFIG)[0]


def reference(params, ids, scored):
    """Sum over the last `scored` ids of their log-probability, in float64."""
    padded = np.zeros(40, np.int32)
    padded[: len(ids) - 1] = ids[:-1]
    logits = logits_of(params, padded)
    total, greedy = 0.0, True
    for place in range(len(ids) - 1 - scored, len(ids) - 1):
        row = np.asarray(logits[place], np.float64)
        row = row - row.max()
        total += row[ids[place + 1]] - math.log(np.exp(row).sum())
        greedy &= int(row.argmax()) == ids[place + 1]
    return total, greedy


def with_files(tokenizer, **changes):
    """A tokenizer with other files beside it, or other content of tokenizer.json."""
    spec = json.loads(tokenizer.files["tokenizer.json"]) | changes.pop("spec", {})
    files = tokenizer.files | {"tokenizer.json": json.dumps(spec).encode()}
    config = json.loads(files.get("tokenizer_config.json", b"{}")) | changes
    return JsonTokenizer(files | {"tokenizer_config.json": json.dumps(config).encode()})


def template(before, after, tokenizer):
    """A post-processor that puts special tokens around a text."""
    names = {i: tokenizer.piece(i) for i in (*before, *after)}
    single = [{"SpecialToken": {"id": names[i], "type_id": 0}} for i in before]
    single += [{"Sequence": {"id": "A", "type_id": 0}}]
    single += [{"SpecialToken": {"id": names[i], "type_id": 0}} for i in after]
    special = {
        name: {"id": name, "ids": [i], "tokens": [name]} for i, name in names.items()
    }
    return {
        "type": "TemplateProcessing",
        "single": single,
        "pair": [*single, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": special,
    }


def test_equals_the_loop(scorer, params, tokenizer):
    pairs = Encoder(tokenizer).pairs(REQUESTS)
    scores = scorer.loglikelihood(REQUESTS)
    for (context, continuation), score in zip(pairs, scores, strict=True):
        ids = (context + continuation)[-41:]
        expected, greedy = reference(params, ids, len(continuation))
        assert score.logprob == pytest.approx(expected, abs=1e-4)
        assert score.is_greedy == greedy
        assert score.tokens == len(continuation)
        assert score.truncated == (len(context + continuation) > 41)
    assert [score.truncated for score in scores].count(True) == 1


def test_greedy_continuations_are_seen(scorer, params, tokenizer):
    context = "The quick brown"
    ids = tokenizer.encode(context).tolist()
    padded = np.zeros(40, np.int32)
    padded[: len(ids)] = ids
    best = int(logits_of(params, padded)[len(ids) - 1].argmax())
    rows = [Row([*ids, best], 1), Row([*ids, (best + 1) % 300], 1)]
    assert [score.is_greedy for score in scorer.score(rows)] == [True, False]


def test_rows_that_differ_in_their_last_token_are_read_once(scorer, params):
    rng = np.random.default_rng(0)
    common = rng.integers(0, 300, 12).tolist()
    rows = [Row([*common, last], 1 + last % 5) for last in range(100, 119)]
    rows += [Row([*common[1:], 7], 12 - 1), Row([*common, 100], 12)]
    for row, found in zip(rows, scorer.score(rows), strict=True):
        expected, greedy = reference(params, row.ids, row.scored)
        assert found.logprob == pytest.approx(expected, abs=1e-4)
        assert (found.is_greedy, found.tokens) == (greedy, row.scored)
    assert [len(group) for group in share(rows, 8)] == [8, 8, 4, 1]


def test_a_batch_does_not_matter(scorer, params, tokenizer):
    whole = scorer.loglikelihood(REQUESTS)
    alone = Scorer(params, CONFIG, tokenizer, batch_size=1)
    for request, expected in zip(REQUESTS[:3], whole[:3], strict=True):
        [score] = alone.loglikelihood([request])
        assert score.logprob == pytest.approx(expected.logprob, abs=1e-5)
        rest = dataclasses.replace(score, logprob=expected.logprob)
        assert rest == expected
    assert scorer.loglikelihood([]) == []


def test_spaces_before_the_answer_belong_to_it(tokenizer):
    encoder = Encoder(tokenizer)
    [moved], [plain] = (
        encoder.pairs([pair]) for pair in (("The dog ", "barks"), ("The dog", " barks"))
    )
    assert moved == plain
    assert tokenizer.decode(plain[1]) == " barks"
    # Not the sum of both encodings: the answer is what the whole adds to the context.
    assert plain[0] + plain[1] == tokenizer.encode("The dog barks").tolist()


def test_an_empty_context_is_the_prefix_token(tokenizer):
    encoder = Encoder(tokenizer)
    [pair] = encoder.pairs([("", "The dog")])
    assert pair == ([encoder.prefix_id], tokenizer.encode("The dog").tolist())
    [pair] = encoder.pairs([("", f"{tokenizer.decode([encoder.prefix_id])}The")])
    assert pair == ([encoder.prefix_id], tokenizer.encode("The").tolist())


def test_an_answer_without_tokens_is_refused(tokenizer):
    with pytest.raises(InputError, match=r"continuation '' of 'The dog' has no token"):
        Encoder(tokenizer).pairs([("The dog", "")])


def test_long_contexts_lose_their_beginning(params, tokenizer):
    scorer = Scorer(params, CONFIG, tokenizer, max_length=8)
    context, answer = TEXT * 2, " The quick brown fox"
    [(before, after)] = Encoder(tokenizer).pairs([(context, answer)])
    [score] = scorer.loglikelihood([(context, answer)])
    expected, _ = reference(params, (before + after)[-9:], len(after))
    assert score.logprob == pytest.approx(expected, abs=1e-4)
    assert (score.tokens, score.truncated) == (len(after), True)
    # An answer that does not fit itself: all but the first of what is kept counts.
    [score] = scorer.loglikelihood([("The", f" {TEXT}")])
    [(_, after)] = Encoder(tokenizer).pairs([("The", f" {TEXT}")])
    expected, _ = reference(params, after[-9:], 8)
    assert score.logprob == pytest.approx(expected, abs=1e-4)
    assert (score.tokens, score.truncated) == (8, True)


def test_rolling_scores_each_token_once(params, tokenizer):
    scorer = Scorer(params, CONFIG, tokenizer, max_length=8)
    ids = tokenizer.encode(TEXT).tolist()
    assert len(ids) > 16
    [score, short, empty] = scorer.rolling([TEXT, "The dog", ""])
    whole = [scorer.encoder.prefix_id, *ids]
    expected, done = 0.0, 0
    while done < len(ids):
        count = min(8, len(ids) - done)
        done += count
        expected += reference(params, whole[max(0, done - 8) : done + 1], count)[0]
    assert score.logprob == pytest.approx(expected, abs=1e-3)
    assert (score.tokens, score.truncated) == (len(ids), False)
    assert short.tokens == len(tokenizer.encode("The dog"))
    assert (empty.logprob, empty.tokens) == (0.0, 0)


@pytest.mark.parametrize("length", range(1, 30))
def test_windows_cover_a_text(length):
    ids = list(range(100, 100 + length))
    rows = list(windows(ids, 1, 8))
    scored = [i for row in rows for i in row.ids[len(row.ids) - row.scored :]]
    assert scored == ids
    assert all(row.scored < len(row.ids) <= 9 for row in rows)


def test_few_programs_are_compiled(params, tokenizer):
    rng = np.random.default_rng(0)
    rows = []
    for length in range(2, 26):
        ids = rng.integers(0, 300, length).tolist()
        rows.append(Row(ids, int(rng.integers(1, length))))
    # Options of its own: nothing that another test compiled serves here.
    scorer = Scorer(
        params,
        CONFIG,
        tokenizer,
        max_length=24,
        batch_size=5,
        compute=Compute(loss_chunk=20),
    )
    before = token_logprobs._cache_size()
    scorer.score(rows)
    scorer.score(rows[::-1][:17])
    assert 0 < token_logprobs._cache_size() - before <= len(buckets(24)) == 2


@pytest.mark.parametrize("longest", [1, 16, 17, 40, 100, 2048, 131072])
def test_buckets_are_few_and_near(longest):
    sizes = buckets(longest)
    assert sizes == sorted(set(sizes))
    assert sizes[-1] == longest
    assert len(sizes) <= 2 * max(0, math.log2(longest / 16)) + 2
    assert all(b <= 1.5 * a for a, b in itertools.pairwise(sizes))


def test_special_tokens_are_those_of_the_tokenizer(tokenizer):
    eos = tokenizer.eos_id
    assert special_tokens(tokenizer) == ((), ())
    post = template((eos,), (), tokenizer)
    begins = with_files(tokenizer, spec={"post_processor": post})
    assert special_tokens(begins) == ((eos,), ())
    assert special_tokens(begins, False) == ((), ())
    both = template((eos, eos), (eos,), tokenizer)
    assert special_tokens(with_files(tokenizer, spec={"post_processor": both})) == (
        (eos, eos),
        (eos,),
    )
    # tokenizer_config.json wins, as in transformers.
    said = with_files(begins, add_bos_token=False, add_eos_token=True)
    assert special_tokens(said) == ((), (eos,))
    # The library agrees.
    library = tokenizers.Tokenizer.from_buffer(begins.files["tokenizer.json"])
    for text in ("The dog", "", " barks"):
        assert Encoder(begins).encode([text]) == [library.encode(text).ids]


def test_a_text_with_its_own_beginning_gets_no_other(tokenizer):
    eos = tokenizer.eos_id
    post = template((eos,), (), tokenizer)
    encoder = Encoder(with_files(tokenizer, spec={"post_processor": post}))
    plain = tokenizer.encode("The dog").tolist()
    marked = f"{tokenizer.piece(eos)}The dog"
    assert encoder.encode(["The dog", marked]) == [[eos, *plain]] * 2
    assert encoder.encode(["The dog"], special=False) == [plain]
    [pair] = encoder.pairs([("The", " dog")])
    assert pair[0] == [eos, *tokenizer.encode("The").tolist()]
    assert encoder.pairs([("  ", "The")])[0][0] == [eos]


def test_bos_that_is_not_there(tokenizer):
    nameless = with_files(tokenizer, bos_token=None, eos_token=None)
    with pytest.raises(InputError, match="neither a bos nor an eos token"):
        Encoder(nameless)
    eos = tokenizer.piece(tokenizer.eos_id)
    only_eos = with_files(tokenizer, bos_token=None, eos_token=eos)
    with pytest.raises(InputError, match="add_bos_token: the tokenizer names no bos"):
        Encoder(only_eos, add_bos_token=True)


def test_bad_input(params, tokenizer, scorer):
    small = dataclasses.replace(CONFIG, vocab_size=290)
    with pytest.raises(
        InputError, match=r"token id 29. is outside .* vocabulary of 290"
    ):
        Scorer(params, small, tokenizer).score([Row([5, 295, 5], 1)])
    for options, message in (
        ({"batch_size": 0}, "batch_size must be >= 1, found 0"),
        ({"max_length": 0}, "max_length must be >= 1, found 0"),
        ({"max_length": 41}, "41 tokens is longer than the model allows"),
    ):
        with pytest.raises(InputError, match=message):
            Scorer(params, CONFIG, tokenizer, **options)
    broken = jax.tree.map(lambda x: x * np.nan, params)
    with pytest.raises(InputError, match="log-likelihood is nan; the weights hold NaN"):
        Scorer(broken, CONFIG, tokenizer).loglikelihood([("The", " dog")])
