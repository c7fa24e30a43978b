"""Examples: packing by a slow reading of the contract, stores, and the mixture."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparse_jax.data import DataConfig, Examples, SourceConfig, prepare, train_bpe
from sparse_jax.data.example_packing import PADDING
from sparse_jax.types import InputError


def make(lengths, seed, **options):
    """Examples whose tokens are all different, with responses at random."""
    rng = np.random.default_rng(seed)
    size = sum(lengths)
    return Examples(
        tokens=np.arange(size),
        response=rng.integers(0, 2, size).astype(np.uint8),
        nbytes=rng.integers(0, 5, size),
        lengths=np.array(lengths, np.int64),
        seed=seed,
        **options,
    )


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 12), min_size=1, max_size=20),
    seq_len=st.integers(1, 10),
    seed=st.integers(0, 99),
    too_long=st.sampled_from(["drop", "truncate"]),
)
def test_rows_hold_every_example_whole_and_once(lengths, seq_len, seed, too_long):
    examples = make(lengths, seed, too_long=too_long)
    plan, seen = examples.plan(seq_len), {}
    rows = examples.num_rows(seq_len)
    batch = examples.pack(np.arange(rows), seq_len=seq_len)
    for row in range(rows):
        segments = batch.segment_ids[row]
        assert (np.diff(segments[segments >= 0]) >= 0).all()
        assert (segments[np.argmax(segments < 0) :] < 0).all() or (segments >= 0).all()
        padding = segments == PADDING
        assert not batch.loss_weights[row][padding].any()
        for segment in range(segments.max() + 1):
            here = segments == segment
            tokens, targets = batch.tokens[row][here], batch.targets[row][here]
            assert (tokens[1:] == targets[:-1]).all()
            assert (batch.positions[row][here] == np.arange(here.sum())).all()
            weights = batch.loss_weights[row][here]
            assert (weights == examples.response[targets]).all()
            assert weights.any()
            assert tokens[0] not in seen
            seen[tokens[0]] = len(tokens) + 1
    starts = np.cumsum(lengths) - lengths
    expected, cut = {}, 0
    for start, length in zip(starts, lengths, strict=True):
        kept = min(length, seq_len + 1)
        if kept < length and too_long == "drop":
            continue
        if examples.response[start + 1 : start + kept].any():
            expected[start] = kept
            cut += kept < length
    assert seen == expected
    assert plan.counts["dropped"] == len(lengths) - len(expected)
    assert plan.counts["truncated"] == cut
    assert plan.counts["response_tokens"] == int(batch.loss_weights.sum())
    assert plan.counts["tokens"] == int((batch.segment_ids >= 0).sum())


def test_best_fit_fills_rows():
    examples = make([6, 6, 5, 5, 4, 4, 3, 3] * 50, 0)
    counts = examples.plan(16).counts
    assert counts["tokens"] / (16 * counts["rows"]) > 0.9


def test_batches_count_bytes_and_pad():
    examples = make([4, 5, 6, 3], 3)
    found = list(examples.batches(batch_size=3, seq_len=5))
    weights = [batch.loss_weights for batch, _ in found]
    assert all(w.shape == (3, 5) for w in weights)
    used = set(examples.plan(5).order.tolist())
    starts = np.cumsum(examples.lengths) - examples.lengths
    total = 0
    for example in used:
        inside = np.arange(
            starts[example] + 1, starts[example] + examples.lengths[example]
        )
        total += examples.nbytes[inside][examples.response[inside] > 0].sum()
    assert sum(size for _, size in found) == total


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    made = train_bpe(["What is one and two? It is three. " * 20], vocab_size=300)
    for name, content in made.files.items():
        (folder / name).write_bytes(content)
    return str(folder)


def records(count):
    return [
        {"question": f"What is {i}?", "answer": f"It is {i}."} for i in range(count)
    ]


def dataset(tmp_path, tokenizer, lines, *, with_text=True, **options):
    path = tmp_path / "gsm8k.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    options = {"task": "gsm8k", "heldout_fraction": 0.2} | options
    source = SourceConfig(path=str(path), **options)
    text = tmp_path / "text.txt"
    text.write_text("".join(f"It is {i} and three.~" for i in range(400)))
    documents = SourceConfig(path=str(text), separator="~", heldout_fraction=0.5)
    config = DataConfig(
        sources={"gsm8k": source} | ({"text": documents} if with_text else {}),
        tokenizer=tokenizer,
        cache_dir=str(tmp_path / "cache"),
        heldout_limit=5_000,
    )
    return prepare(config, progress=False)


def test_what_is_learned_is_the_answer_and_its_end(tmp_path, tokenizer):
    data = dataset(tmp_path, tokenizer, records(60))
    batch = next(data.batches(batch_size=2, seq_len=64, seed=0, sources=["gsm8k"]))
    tok = data.tokenizer
    for row in range(2):
        for segment in range(batch.segment_ids[row].max() + 1):
            here = batch.segment_ids[row] == segment
            read = tok.decode(batch.tokens[row][here])
            weighted = here & (batch.loss_weights[row] > 0)
            said = tok.decode(batch.targets[row][weighted])
            number = read.split("What is ")[1].split("?")[0]
            assert read.startswith("<|endoftext|>Question: What is ")
            assert said == f" It is {number}.<|endoftext|>"
    meta = data.fingerprint["sources"]["gsm8k"]
    assert meta["train"]["documents"] + meta["heldout"]["documents"] == 60
    assert data.heldout_examples("text") is None


def test_batches_mix_sources_and_calibration_has_no_padding(tmp_path, tokenizer):
    data = dataset(tmp_path, tokenizer, records(60))
    batches = data.batches(batch_size=8, seq_len=32, seed=0, isolate_documents=True)
    batch = next(batches)
    padded = (batch.segment_ids == PADDING).any(axis=1)
    assert 2 <= padded.sum() <= 6  # rows of examples rarely fit without padding
    rows = data.calibration(4, 32, 0, ["gsm8k"])
    assert "Question: What is " in data.tokenizer.decode(rows.ravel())
    assert len({*map(tuple, rows.tolist())}) == 4


def test_bad_records_are_counted_and_a_missing_field_is_not(tmp_path, tokenizer):
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    good, silent, odd = (
        {"messages": turns},
        {"messages": turns[:1]},
        {"messages": turns[::-1]},
    )
    lines = [good] * 5 + [silent] * 2 + [odd]
    data = dataset(tmp_path, tokenizer, lines, task="chat", heldout_fraction=0.0)
    meta = data.fingerprint["sources"]["gsm8k"]
    assert meta["skipped"] == {"no_response": 2, "template": 1}
    assert meta["train"]["documents"] == 5
    with pytest.raises(InputError, match=r"gsm8k.jsonl:1: no turn of the assistant"):
        dataset(tmp_path, tokenizer, [silent], task="chat")
    with pytest.raises(
        InputError, match=r"gsm8k.jsonl:1: does not render .*take turns"
    ):
        dataset(tmp_path, tokenizer, [odd], task="chat")
    silent_template = tmp_path / "template.jinja"
    silent_template.write_text("{{ messages[0].content }}")
    with pytest.raises(InputError, match="the template leaves the response out"):
        dataset(tmp_path, tokenizer, records(3), template=str(silent_template))
    with pytest.raises(InputError, match=r"gsm8k.jsonl:2: field 'answer' is missing"):
        dataset(tmp_path, tokenizer, [*records(1), {"question": "q"}])


def test_a_task_needs_records_a_tokenizer_and_room(tmp_path, tokenizer):
    with pytest.raises(InputError, match="read as text: name JSON lines or Parquet"):
        path = tmp_path / "a.txt"
        path.write_text("x")
        dataset(tmp_path, tokenizer, records(3), format="text")
    with pytest.raises(InputError, match="on which no tokenizer is trained"):
        dataset(tmp_path, "bpe", records(3), with_text=False)
    with pytest.raises(InputError, match="none of its 3 training examples fits"):
        data = dataset(tmp_path, tokenizer, records(3), heldout_fraction=0.0)
        next(data.batches(batch_size=1, seq_len=8, seed=0, sources=["gsm8k"]))
    with pytest.raises(InputError, match="set task, or leave template out"):
        SourceConfig(path="x", template="plain")


def test_a_tokenizer_is_trained_on_the_documents_beside_a_task(tmp_path):
    found = dataset(tmp_path, "bpe", records(3)).tokenizer
    assert found.files == dataset(tmp_path, "bpe", records(9)).tokenizer.files


def test_equal_questions_are_held_out_together(tmp_path, tokenizer):
    lines = [r | {"answer": f"{k}"} for r in records(40) for k in range(3)]
    data = dataset(tmp_path, tokenizer, lines, heldout_fraction=0.3)
    held = data.heldout_examples("gsm8k")
    texts = data.tokenizer.decode(held.tokens).split("Question: ")[1:]
    asked = [text.split("?")[0] for text in texts]
    assert len(asked) == 3 * len({*asked})
