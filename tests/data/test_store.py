"""Stores: what is written, resumed after a kill, shared, and refused."""

import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest

from sparse_jax.data import cached
from sparse_jax.data import store as store_lib
from sparse_jax.data.bpe import train_bpe
from sparse_jax.data.sources import SourceConfig, source_shards
from sparse_jax.types import InputError


@pytest.fixture(scope="module")
def tokenizer():
    return train_bpe(["some text to learn from " * 20], vocab_size=300)


@pytest.fixture
def source(tmp_path):
    folder = tmp_path / "source"
    folder.mkdir()
    for n in range(3):
        rows = [json.dumps({"text": f"text {n} {i} " + "x" * i}) for i in range(40)]
        (folder / f"{n}.jsonl").write_text("\n".join(rows))
    return SourceConfig(path=str(folder), heldout_fraction=0.2)


def build(source, tokenizer, cache_dir):
    shards = source_shards(source)
    return store_lib.build_store(shards, tokenizer, cache_dir, name="test")


def test_holds_every_document_once(source, tokenizer, tmp_path):
    store = build(source, tokenizer, tmp_path / "cache")
    want = {"train": [], "heldout": []}
    for shard in source_shards(source):
        for split, text in shard.documents():
            want[split].append(text)
    found = np.split(np.array(store.tokens), np.cumsum(store.lengths)[:-1])
    assert [tokenizer.decode(ids[:-1]) for ids in found] == want["train"]
    assert all(ids[-1] == tokenizer.eos_id for ids in found)
    assert store.heldout_documents(None) == want["heldout"]
    assert store.meta["train"]["documents"] == len(want["train"])
    assert store.meta["heldout"]["bytes"] == sum(
        len(t.encode()) for t in want["heldout"]
    )
    assert store.tokens.dtype == np.uint16


def test_heldout_stream(source, tokenizer, tmp_path):
    store = build(source, tokenizer, tmp_path / "cache")
    text = "\n\n".join(store.heldout_documents(None))
    ids, nbytes = store.heldout(tokenizer, None)
    assert tokenizer.decode(ids) == text
    assert nbytes.sum() == len(text.encode())
    again = store.heldout(tokenizer, None)  # now from its file
    np.testing.assert_array_equal(np.stack(again), np.stack([ids, nbytes]))
    assert again[0].dtype == again[1].dtype == np.int32
    assert len(store.heldout_documents(30)) < len(store.heldout_documents(None))
    assert len(store.heldout_documents(1)) == 1
    assert len(store.heldout(tokenizer, 30)[0]) < len(ids)


def test_found_again_and_not_built_again(source, tokenizer, tmp_path, monkeypatch):
    first = build(source, tokenizer, tmp_path / "cache")
    monkeypatch.setattr(cached, "_build", None)
    assert build(source, tokenizer, tmp_path / "cache").path == first.path


def test_changed_inputs_make_another_store(source, tokenizer, tmp_path):
    first = build(source, tokenizer, tmp_path / "cache")
    other = train_bpe(["another text " * 20], vocab_size=290)
    assert build(source, other, tmp_path / "cache").path != first.path
    with open(f"{source.path}/0.jsonl", "a") as file:
        file.write('\n{"text": "one more"}')
    assert build(source, tokenizer, tmp_path / "cache").path != first.path


KILLED = """
import os, signal, sys
from sparse_jax.data import store
from sparse_jax.data.bpe import train_bpe
from sparse_jax.data.sources import SourceConfig, source_shards
path, cache, stop_at = sys.argv[1], sys.argv[2], int(sys.argv[3])
tokenise, calls = store._tokenise, []
def stop(shard, *rest):
    calls.append(shard)
    if len(calls) - 1 == stop_at:
        os.kill(os.getpid(), signal.SIGKILL)
    tokenise(shard, *rest)
store._tokenise = stop
tokenizer = train_bpe(["some text to learn from " * 20], vocab_size=300)
shards = source_shards(SourceConfig(path=path, heldout_fraction=0.2))
import pathlib
store.build_store(shards, tokenizer, pathlib.Path(cache), name="test")
"""


def test_killed_build_goes_on_at_the_shard(source, tokenizer, tmp_path, monkeypatch):
    whole = build(source, tokenizer, tmp_path / "whole")
    cache = tmp_path / "cache"
    command = [sys.executable, "-c", KILLED, source.path, str(cache), "2"]
    assert subprocess.run(command).returncode == -signal.SIGKILL
    calls = []
    tokenise = store_lib._tokenise
    monkeypatch.setattr(
        store_lib,
        "_tokenise",
        lambda shard, *rest: calls.append(shard) or tokenise(shard, *rest),
    )
    store = build(source, tokenizer, cache)
    assert len(calls) == 1  # two of three shards were done
    for name in ("tokens.bin", "lengths.bin", "heldout.jsonl", "meta.json"):
        assert (store.path / name).read_bytes() == (whole.path / name).read_bytes()


def test_two_processes_at_once(source, tokenizer, tmp_path):
    cache = tmp_path / "cache"
    command = [sys.executable, "-c", KILLED, source.path, str(cache), "-1"]
    processes = [subprocess.Popen(command) for _ in range(2)]
    assert [process.wait() for process in processes] == [0, 0]
    store = build(source, tokenizer, cache)
    assert len(store.tokens) == store.meta["tokens"]
    assert not list(cache.glob("tokens/*.parts"))


def test_bad_document_names_its_line(source, tokenizer, tmp_path):
    with open(f"{source.path}/1.jsonl", "a") as file:
        file.write("\n{oops")
    with pytest.raises(InputError, match=r"1\.jsonl:41"):
        build(source, tokenizer, tmp_path / "cache")


@pytest.mark.parametrize("name", ["tokens.bin", "lengths.bin", "meta.json"])
def test_damaged_store(source, tokenizer, tmp_path, name):
    store = build(source, tokenizer, tmp_path / "cache")
    content = (store.path / name).read_bytes()
    (store.path / name).write_bytes(content[:-8])
    with pytest.raises(InputError, match=r"damaged .* delete them"):
        build(source, tokenizer, tmp_path / "cache")


def test_damaged_heldout_stream(source, tokenizer, tmp_path):
    store = build(source, tokenizer, tmp_path / "cache")
    store.heldout(tokenizer, None)
    (store.path / "heldout-None.npy").write_bytes(b"\x93NUMPY")
    with pytest.raises(InputError, match=r"damaged .* delete them"):
        store.heldout(tokenizer, None)


def test_complete_store_in_a_read_only_cache(source, tokenizer, tmp_path, monkeypatch):
    store = build(source, tokenizer, tmp_path / "cache")

    def read_only(*arguments):
        raise OSError(30, os.strerror(30))

    monkeypatch.setattr(cached.os, "replace", read_only)
    again = build(source, tokenizer, tmp_path / "cache")
    assert len(again.heldout(tokenizer, None)[0]) > 0
    assert not list(store.path.glob("*.tmp"))


def test_unwritable_cache(source, tokenizer, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match=r"cannot be written .* data\.cache_dir"):
        build(source, tokenizer, tmp_path / "file" / "cache")

    def full(*arguments):
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(store_lib, "_tokenise", full)
    with pytest.raises(InputError, match="No space left on device"):
        build(source, tokenizer, tmp_path / "cache")
