"""The mixture: a pure function of (seed, step), on real and on made data."""

import dataclasses
import itertools
import json

import numpy as np
import pytest

from sparse_jax import schema
from sparse_jax.data import DataConfig, SourceConfig, prepare, stream_from_path
from sparse_jax.data.config import default_cache_dir
from sparse_jax.types import InputError


@pytest.fixture(scope="module")
def embedded():
    return prepare(DataConfig(vocab_size=512))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Two sources told apart by their first letter: 'a' three times as often."""
    folder = tmp_path_factory.mktemp("made")
    for name, size in (("a", 400), ("b", 100)):
        rows = [json.dumps({"text": f"{name} " * (20 + i % 13)}) for i in range(size)]
        rows = [row.replace('" }', f'{i}"}}') for i, row in enumerate(rows)]
        (folder / f"{name}.jsonl").write_text("\n".join(rows))
    sources = {
        name: SourceConfig(
            path=str(folder / f"{name}.jsonl"), weight=weight, heldout_fraction=0.1
        )
        for name, weight in (("a", 3.0), ("b", 1.0))
    }
    return prepare(DataConfig(sources=sources, vocab_size=300))


def take(count, dataset, **options):
    options = {"batch_size": 8, "seq_len": 16, "seed": 5} | options
    return list(itertools.islice(dataset.batches(**options), count))


def assert_equal(first, second):
    for a, b in zip(first, second, strict=True):
        for x, y in zip(a, b, strict=True):
            np.testing.assert_array_equal(x, y)
            assert x.dtype == y.dtype


def test_embedded_batches(embedded):
    (batch,) = take(1, embedded, seq_len=64)
    assert batch.tokens.shape == (8, 64)
    np.testing.assert_array_equal(batch.tokens[:, 1:], batch.targets[:, :-1])
    assert batch.tokens.max() < embedded.tokenizer.vocab_size == 512
    assert (batch.loss_weights == 1).all()
    assert (batch.positions == np.arange(64)).all()


@pytest.mark.parametrize("process_count", [1, 2, 4])
def test_batches_do_not_depend_on_the_number_of_processes(made, process_count):
    whole = take(30, made)  # several epochs of the smaller source
    parts = [
        take(30, made, process_index=p, process_count=process_count)
        for p in range(process_count)
    ]
    joined = [
        type(whole[0])(*(np.concatenate(arrays) for arrays in zip(*local, strict=True)))
        for local in zip(*parts, strict=True)
    ]
    assert_equal(joined, whole)


@pytest.mark.parametrize("process_count", [1, 2])
def test_starting_anywhere_equals_never_stopping(made, process_count):
    options = {"process_index": process_count - 1, "process_count": process_count}
    whole = take(200, made, **options)  # epochs wrap around
    for start in (1, 7, 150):
        assert_equal(take(50, made, start_step=start, **options), whole[start:][:50])


def test_batches_follow_the_seed(made):
    first, again = take(3, made), take(3, made)
    assert_equal(first, again)
    other = take(3, made, seed=6)
    assert any((a.tokens != b.tokens).any() for a, b in zip(first, other, strict=True))


def test_sources_are_mixed_by_weight(made):
    letter = made.tokenizer.encode("a b a b").tolist()
    text = [
        made.tokenizer.decode(row) for batch in take(100, made) for row in batch.tokens
    ]
    share = np.mean([row.count("a") > row.count("b") for row in text])
    assert letter and abs(share - 0.75) < 0.02


def test_an_epoch_holds_every_row_once(made):
    source = {"a": made.config.sources["a"]}
    dataset = prepare(dataclasses.replace(made.config, sources=source))
    count = dataset._streams["a"].num_rows(16)
    first = np.concatenate([b.tokens for b in take(count, dataset, batch_size=1)])
    stream = dataset._streams["a"]
    want = np.concatenate(
        [
            stream.tokens[s : s + n]
            for s, n in zip(stream.starts, np.diff(stream.bounds), strict=True)
        ]
    )[: count * 16]
    assert sorted(map(tuple, first)) == sorted(map(tuple, want.reshape(count, 16)))
    second = take(2 * count, dataset, batch_size=1)[count:]
    second = np.concatenate([b.tokens for b in second])
    assert sorted(map(tuple, second)) == sorted(map(tuple, first))
    assert (second != first).any()


def test_isolated_documents(made):
    dataset = prepare(dataclasses.replace(made.config, isolate_documents=True))
    (batch,) = take(1, dataset, seq_len=64)
    starts = np.diff(batch.segment_ids, axis=1) == 1
    assert starts.any()
    assert (batch.positions[:, 1:][starts] == 0).all()
    assert (batch.loss_weights[:, :-1][starts] == 0).all()
    assert (batch.tokens[:, :-1][starts] == dataset.tokenizer.eos_id).all()


@pytest.mark.parametrize("domain", ["code", "prose"])
def test_heldout_stream(embedded, domain):
    ids, nbytes = embedded.heldout(domain)
    from sparse_jax.data import load_corpus

    text = "\n\n".join(load_corpus().documents[domain]["heldout"])
    assert embedded.tokenizer.decode(ids) == text
    assert nbytes.sum() == len(text.encode())
    assert len(ids) > 50_000
    found = stream_from_path(f"embedded:{domain}", embedded.tokenizer)
    np.testing.assert_array_equal(found[0], ids)
    np.testing.assert_array_equal(found[1], nbytes)


def test_calibration_is_training_text(made):
    rows = made.calibration(40, 12, seed=3)
    assert rows.shape == (40, 12) and rows.dtype == np.int32
    np.testing.assert_array_equal(rows, made.calibration(40, 12, seed=3))
    assert (rows != made.calibration(40, 12, seed=4)).any()
    known = {
        tuple(row)
        for batch in take(60, made, seq_len=12, batch_size=16)
        for row in batch.tokens
    }
    assert {tuple(row) for row in rows} <= known
    share = np.mean(["b" not in made.tokenizer.decode(row) for row in rows])
    assert abs(share - 0.75) < 0.05


def test_fingerprint(embedded):
    fingerprint = embedded.fingerprint
    assert json.loads(json.dumps(fingerprint)) == fingerprint
    assert fingerprint == prepare(embedded.config).fingerprint
    assert fingerprint["corpus"]["topics"] == "present"
    assert fingerprint["tokenizer"]["sha256"] == embedded.tokenizer.fingerprint
    for name in embedded.domains:
        source = fingerprint["sources"][name]
        ids, nbytes = embedded.heldout(name)
        assert source["heldout"]["tokens"] == len(ids)
        assert source["heldout"]["bytes"] == nbytes.sum()
        counts = fingerprint["corpus"]["documents"][name]
        assert source["train"]["documents"] == counts["train"]
        assert source["heldout"]["documents"] == counts["heldout"]


def test_config_round_trips_through_json(made):
    plain = json.loads(json.dumps(schema.to_dict(made.config)))
    assert schema.build(DataConfig, plain) == made.config
    with pytest.raises(InputError, match=r"sources\.code\.wieght is not .*\.weight\?"):
        schema.build(DataConfig, {"sources": {"code": {"wieght": 1.0}}})


def test_real_data_with_a_real_tokenizer(shared_data):
    sources = {
        "stories": SourceConfig(
            path=str(shared_data / "tinystories" / "tinystories_sample_cs336.txt"),
            heldout=str(shared_data / "tinyshakespeare" / "input.txt"),
        ),
        "web": SourceConfig(
            path=str(shared_data / "c4" / "olmo*.json.gz"), heldout_fraction=0.1
        ),
    }
    tokenizer = str(shared_data / "stories260K-hf")
    dataset = prepare(
        DataConfig(sources=sources, tokenizer=tokenizer, heldout_limit=100_000)
    )
    (batch,) = take(1, dataset, seq_len=64)
    assert batch.tokens.max() < 512
    size = (shared_data / "tinyshakespeare" / "input.txt").stat().st_size
    assert dataset.heldout("stories")[1].sum() == size  # at least one document
    assert dataset.heldout("web")[1].sum() <= 101_000
    assert dataset.fingerprint["corpus"] is None


def test_stream_from_path(tmp_path, embedded):
    tokenizer, text = embedded.tokenizer, "\n one\r\n\n two \n"
    (tmp_path / "a.txt").write_bytes(text.encode())
    ids, nbytes = stream_from_path(str(tmp_path / "a.txt"), tokenizer)
    assert tokenizer.decode(ids) == text
    assert nbytes.sum() == len(text.encode())
    (tmp_path / "b.jsonl").write_text('{"body": "one"}\n{"body": "two"}')
    ids, _ = stream_from_path(str(tmp_path / "b.jsonl"), tokenizer, field="body")
    assert tokenizer.decode(ids) == "one\n\ntwo"
    with pytest.raises(InputError, match="does not exist"):
        stream_from_path(str(tmp_path / "c.txt"), tokenizer)


def test_cache_dir(monkeypatch, tmp_path):
    monkeypatch.setenv("SPARSE_JAX_CACHE", str(tmp_path / "own"))
    assert default_cache_dir() == tmp_path / "own"
    monkeypatch.delenv("SPARSE_JAX_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_cache_dir() == tmp_path / "sparse_jax"


def test_bad_batches(made):
    with pytest.raises(InputError, match="batch_size 8 must be a positive multiple"):
        take(1, made, process_count=3)
    with pytest.raises(InputError, match="process_index"):
        take(1, made, process_index=2, process_count=2)
    with pytest.raises(InputError, match=r"source . \(.*fewer than one row of 100000"):
        take(1, made, seq_len=100_000)
    with pytest.raises(InputError, match="seq_len must be at least 1"):
        take(1, made, seq_len=0)
    with pytest.raises(InputError, match="fewer than one row"):
        made.calibration(4, 100_000, seed=0)
    with pytest.raises(InputError, match="at least 1 row"):
        made.calibration(0, 8, seed=0)


def test_bad_heldout(made, tmp_path):
    with pytest.raises(InputError, match=r"'c' is not a domain .* \['a', 'b'\]"):
        made.heldout("c")
    (tmp_path / "a.txt").write_text("one document only " * 9)
    sources = {"one": SourceConfig(path=str(tmp_path / "a.txt"), heldout_fraction=0.0)}
    dataset = prepare(DataConfig(sources=sources, vocab_size=300))
    assert dataset.fingerprint["sources"]["one"]["heldout"]["tokens"] == 0
    with pytest.raises(InputError, match="holds out no document"):
        dataset.heldout("one")


def test_bad_config():
    with pytest.raises(InputError, match="at least one source"):
        DataConfig(sources={})
    with pytest.raises(InputError, match="heldout_limit"):
        DataConfig(heldout_limit=0)
    with pytest.raises(InputError, match="at least 257"):
        prepare(DataConfig(vocab_size=100))
    with pytest.raises(InputError, match="does not exist"):
        prepare(DataConfig(tokenizer="no/such/tokenizer"))
