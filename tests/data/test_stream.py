"""Reading that stops early: the same text every time, and never more than was asked."""

import gzip
import json

import numpy as np
import pytest

from sparse_jax.data import load_corpus, stream_from_path, train_bpe
from sparse_jax.types import InputError


@pytest.fixture(scope="module")
def tokenizer():
    return train_bpe(["a few words of text, ☃ ☃\n"], vocab_size=280)


def read(path, tokenizer, **options):
    ids, nbytes = stream_from_path(str(path), tokenizer, **options)
    text = tokenizer.decode(ids)
    assert nbytes.sum() == len(text.encode())
    return text


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz"])
def test_a_text_file_is_cut_at_a_whole_character(tmp_path, tokenizer, name):
    content = ("ab☃" * 10).encode()
    path = tmp_path / name
    path.write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    assert read(path, tokenizer, limit=8) == "ab☃ab"  # its bytes 8 and 9 are missing
    assert read(path, tokenizer, limit=10) == "ab☃ab☃"
    assert read(path, tokenizer, limit=1000) == "ab☃" * 10
    # Beyond the limit nothing is decoded: what is broken there is not even seen.
    (tmp_path / "broken.txt").write_bytes(b"good" + b"\xff" * 99)
    assert read(tmp_path / "broken.txt", tokenizer, limit=4) == "good"
    with pytest.raises(InputError, match="found byte 0xff at offset 4"):
        read(tmp_path / "broken.txt", tokenizer, limit=5)


def test_lines_beyond_the_limit_are_not_read(tmp_path, tokenizer):
    lines = [json.dumps({"text": f"document {i}"}) for i in range(9)]
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join([*lines, "not JSON"]))
    assert read(path, tokenizer, limit=30) == "document 0\n\ndocument 1\n\ndocume"
    with pytest.raises(InputError, match=r"a\.jsonl:10: expected one JSON object"):
        read(path, tokenizer, limit=1000)


def test_files_share_the_limit(tmp_path, tokenizer):
    (tmp_path / "a.txt").write_text("a" * 4)  # leaves what it does not need to others
    (tmp_path / "b.txt").write_text("b" * 100)
    (tmp_path / "c.txt").write_text("c" * 100)
    text = read(tmp_path, tokenizer, limit=34)
    assert text == "a" * 4 + "\n\n" + "b" * 14 + "\n\n" + "c" * 12
    assert read(tmp_path, tokenizer) == "\n\n".join(["a" * 4, "b" * 100, "c" * 100])


@pytest.mark.parametrize("split", ["train", "heldout"])
def test_the_embedded_corpus_by_split(tokenizer, split):
    documents = load_corpus().documents["code"][split]
    text = read("embedded:code", tokenizer, split=split, limit=3000)
    assert text == "\n\n".join(documents)[: len(text)] and len(text) > 2900


def test_the_same_text_every_time(tokenizer):
    streams = [
        stream_from_path("embedded:prose", tokenizer, split="train", limit=5000)
        for _ in range(2)
    ]
    np.testing.assert_array_equal(*(ids for ids, _ in streams))
