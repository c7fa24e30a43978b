"""Every format read, and every bad input refused with a sentence that helps."""

import gzip
import json
import sys
import textwrap

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sparse_jax.data.sources import SourceConfig, find_shards, source_shards
from sparse_jax.types import InputError

DOCUMENTS = ["First text.\n", "Second: naïve ☃", "third " * 100]


def texts(path, **options):
    return [
        t for shard in find_shards(str(path), **options) for _, t in shard.documents()
    ]


def lines(field="text"):
    return "".join(json.dumps({"id": 1, field: text}) + "\n" for text in DOCUMENTS)


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.jsonl.gz", "a.json.gz"])
def test_jsonl(tmp_path, name):
    path = tmp_path / name
    content = (lines() + "\n" + '{"text": ""}\n{"text": null}\n').encode()
    path.write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    assert texts(path) == DOCUMENTS


@pytest.mark.parametrize("name", ["a.txt", "a.md", "a.txt.gz"])
def test_text_is_verbatim(tmp_path, name):
    path, text = tmp_path / name, "\n one\r\ntwo ☃\n\n"
    content = text.encode()
    path.write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    assert texts(path) == [text]


def test_a_separator_divides_a_text_file(tmp_path):
    (tmp_path / "a.txt").write_text("one\nstory\n<|end|>\n\n two <|end|>\n<|end|>3\n")
    config = SourceConfig(path=str(tmp_path / "a.txt"), separator="<|end|>")
    (shard,) = source_shards(config)
    assert {text for _, text in shard.documents()} == {"one\nstory", "two", "3"}
    (whole,) = source_shards(SourceConfig(path=config.path))
    assert whole.identity() != shard.identity()
    # Its stories are held out one by one, as documents are.
    stories = [f"story {i}" for i in range(400)]
    (tmp_path / "b.txt").write_text("<|end|>".join(stories))
    path, fraction = str(tmp_path / "b.txt"), 0.2
    (shard,) = source_shards(
        SourceConfig(path=path, separator="<|end|>", heldout_fraction=fraction)
    )
    found = {split: [] for split in ("train", "heldout")}
    for split, text in shard.documents():
        found[split].append(text)
    assert sorted(found["train"] + found["heldout"]) == sorted(stories)
    assert 0.1 < len(found["heldout"]) / 400 < 0.3


def test_bad_separator(tmp_path):
    (tmp_path / "a.jsonl").write_text(lines())
    with pytest.raises(InputError, match=r"a.jsonl is read as jsonl, which keeps its"):
        source_shards(SourceConfig(path=str(tmp_path), separator="<|end|>"))
    with pytest.raises(InputError, match="embedded:code is read as embedded"):
        source_shards(SourceConfig(separator="<|end|>"))
    with pytest.raises(InputError, match="must not be empty"):
        SourceConfig(separator="")


def test_parquet_by_row_groups(tmp_path):
    table = pa.table({"n": [1, 2, 3, 4], "body": [*DOCUMENTS, None]})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=2)
    assert texts(tmp_path / "a.parquet", field="body") == DOCUMENTS


def write_array_record(path, records):
    from array_record.python import array_record_module

    writer = array_record_module.ArrayRecordWriter(str(path), "group_size:1")
    for record in records:
        writer.write(record)
    writer.close()


def test_array_record(tmp_path):
    path = tmp_path / "a.array_record"
    records = [DOCUMENTS[0].encode(), json.dumps({"text": DOCUMENTS[1]}).encode()]
    write_array_record(path, [*records, b"{ not JSON, just text"])
    assert texts(path) == [*DOCUMENTS[:2], "{ not JSON, just text"]


@pytest.fixture(scope="module")
def tfds_dir(tmp_path_factory):
    """A prepared data set; its builder must live in an importable package."""
    folder = tmp_path_factory.mktemp("tfds")
    package = folder / "tiny_texts_for_tests"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "tiny_texts.py").write_text(
        textwrap.dedent(
            f"""
            import tensorflow_datasets as tfds

            class TinyTexts(tfds.core.GeneratorBasedBuilder):
                VERSION = tfds.core.Version("1.0.0")

                def _info(self):
                    features = tfds.features.FeaturesDict(
                        {{"text": tfds.features.Text()}}
                    )
                    return self.dataset_info_from_configs(features=features)

                def _split_generators(self, dl_manager):
                    generate = self._generate_examples
                    return {{"train": generate(3), "test": generate(1)}}

                def _generate_examples(self, n):
                    for i, text in enumerate({DOCUMENTS!r}[:n]):
                        yield i, {{"text": text}}
            """
        )
    )
    sys.path.insert(0, str(folder))
    try:
        from tiny_texts_for_tests.tiny_texts import TinyTexts

        builder = TinyTexts(data_dir=str(folder / "data"), file_format="array_record")
        builder.download_and_prepare()
        yield builder.data_dir
    finally:
        sys.path.remove(str(folder))


@pytest.mark.filterwarnings("ignore")
def test_tfds(tfds_dir, monkeypatch):
    assert sorted(texts(f"tfds:{tfds_dir}")) == sorted(DOCUMENTS)
    assert len(texts(f"tfds:{tfds_dir}:test")) == 1
    with pytest.raises(InputError, match=r"split 'valid', found \['test', 'train'\]"):
        texts(f"tfds:{tfds_dir}:valid")
    with pytest.raises(InputError, match=r"'body' is missing, found \['text'\]"):
        texts(f"tfds:{tfds_dir}", field="body")
    first, second = (
        find_shards(f"tfds:{tfds_dir}"),
        find_shards(f"tfds:{tfds_dir}:test"),
    )
    assert first[0].identity() != second[0].identity()


@pytest.mark.filterwarnings("ignore")
def test_tfds_by_name(tfds_dir, monkeypatch):
    data_dir = tfds_dir.rsplit("/", 2)[0]
    monkeypatch.setenv("TFDS_DATA_DIR", data_dir)
    monkeypatch.setattr("tensorflow_datasets.core.constants.DATA_DIR", data_dir)
    for name in ("tiny_texts", "tiny_texts:train", "tiny_texts:1.0.0:train"):
        assert sorted(texts(f"tfds:{name}")) == sorted(DOCUMENTS)
    with pytest.raises(InputError, match="not a prepared TFDS data set"):
        texts("tfds:no_such_data_set:train")
    with pytest.raises(InputError, match="must look like"):
        texts("tfds:a:1.0.0:train:more")


def test_directories_and_globs_are_sorted(tmp_path):
    (tmp_path / "sub").mkdir()
    for name in ("b.txt", "a.txt", "sub/c.txt", ".hidden.txt"):
        (tmp_path / name).write_text(name)
    (tmp_path / "notes.pdf").write_bytes(b"\0")
    assert texts(tmp_path) == ["a.txt", "b.txt", "sub/c.txt"]
    assert texts(tmp_path / "[ab].txt") == ["a.txt", "b.txt"]
    assert texts(tmp_path / "**" / "c.*") == ["sub/c.txt"]


def test_explicit_format(tmp_path):
    (tmp_path / "data.dump").write_text(lines())
    assert texts(tmp_path / "data.dump", format="jsonl") == DOCUMENTS
    assert texts(tmp_path, format="jsonl") == DOCUMENTS


def test_equal_documents_land_on_the_same_side(tmp_path):
    rows = [f"document {i % 200}" for i in range(1000)]
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
    (shard,) = source_shards(SourceConfig(path=str(path), heldout_fraction=0.2))
    splits = {"train": [], "heldout": []}
    for split, text in shard.documents():
        splits[split].append(text)
    assert not set(splits["train"]) & set(splits["heldout"])
    assert 0.1 < len(splits["heldout"]) / 1000 < 0.3


def test_held_out_files(tmp_path):
    for name in ("train.txt", "valid.txt"):
        (tmp_path / name).write_text(name)
    train, valid = str(tmp_path / "train.txt"), str(tmp_path / "valid.txt")
    shards = source_shards(SourceConfig(path=train, heldout=valid))
    found = [document for shard in shards for document in shard.documents()]
    assert found == [("train", "train.txt"), ("heldout", "valid.txt")]
    with pytest.raises(InputError, match="keep the two apart"):
        source_shards(SourceConfig(path=str(tmp_path), heldout=valid))
    with pytest.raises(InputError, match="holds out its own"):
        source_shards(SourceConfig(path="embedded:code", heldout=valid))


BAD_FILES = {
    "empty": ("a.txt", b"", "a.txt is empty"),
    "blank": ("a.txt", b" \n\n", "a.txt holds no text"),
    "binary": ("a.txt", b"abc\0def", "zero byte at offset 3"),
    "not UTF-8": ("a.txt", b"caf\xe9", "byte 0xe9 at offset 3"),
    "no JSON": (
        "a.jsonl",
        b'{"text": "a"}\n{"text": \n',
        r"a.jsonl:2: expected one JSON",
    ),
    "JSON list": ("a.jsonl", b"[1, 2]\n", r"a.jsonl:1: .* found a list"),
    "one big JSON": ("a.json", b'{\n "text": "a"\n}', r"a.json:1: expected one JSON"),
    "no field": (
        "a.jsonl",
        b'{"text": "a"}\n\n{"body": "b", "a": 1}\n',
        r"a.jsonl:3: field 'text' is missing, found \['a', 'body'\]",
    ),
    "number": ("a.jsonl", b'{"text": 3}', r"a.jsonl:1: .* must be a string, found int"),
    "binary line": ("a.jsonl", b'{"text": "a\0"}', r"a.jsonl:1: .* zero byte"),
    "surrogate": ("a.jsonl", b'{"text": "a\\ud800"}', r"a.jsonl:1: .* lone surrogate"),
    "no document": ("a.jsonl", b'{"text": ""}\n', "holds no text"),
    "not gzip": ("a.jsonl.gz", b"plain", "cannot be read"),
    "cut gzip": ("a.jsonl.gz", gzip.compress(b"abc" * 999)[:-9], "cannot be read"),
    "not Parquet": ("a.parquet", b"plain text", "a.parquet cannot be read"),
    "not ArrayRecord": ("a.array_record", b"plain", "a.array_record cannot be read"),
    "unknown suffix": ("a.dat", b"text", "no suffix that names its format"),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_bad_file(tmp_path, case):
    name, content, message = BAD_FILES[case]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        texts(tmp_path / name)


def test_bad_parquet_column(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"n": [1], "m": ["x"]}), path)
    with pytest.raises(InputError, match=r"'text' is missing, found \['m', 'n'\]"):
        texts(path)
    with pytest.raises(InputError, match="must hold strings, found int64"):
        texts(path, field="n")


def test_bad_array_record(tmp_path):
    write_array_record(tmp_path / "a.array_record", [b'{"body": "x"}'])
    with pytest.raises(InputError, match=r"record 0: field 'text' is missing"):
        texts(tmp_path / "a.array_record")
    write_array_record(tmp_path / "b.array_record", [b"\x0a\x00\xff"])
    with pytest.raises(InputError, match=r"record 0: .* use tfds"):
        texts(tmp_path / "b.array_record")


def test_bad_paths(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        texts(tmp_path / "a.txt")
    with pytest.raises(InputError, match="matches no file"):
        texts(tmp_path / "*.txt")
    with pytest.raises(InputError, match="holds no file of a known format"):
        texts(tmp_path)
    with pytest.raises(InputError, match="choose embedded:code or"):
        find_shards("embedded:poems")
    with pytest.raises(InputError, match="do not fit"):
        find_shards("embedded:code", format="text")


@pytest.mark.parametrize("weight", [0.0, -1.0, float("nan"), float("inf")])
def test_bad_weight(weight):
    with pytest.raises(InputError, match="must be positive"):
        SourceConfig(weight=weight)


@pytest.mark.parametrize("fraction", [-0.1, 1.0, float("nan")])
def test_bad_fraction(fraction):
    with pytest.raises(InputError, match="heldout_fraction"):
        SourceConfig(heldout_fraction=fraction)


@pytest.mark.parametrize(
    ("name", "field", "documents"),
    [
        ("c4/olmo-c4-sample.00000-of-00001.json.gz", "text", 1000),
        ("redpajama/wiki1.jsonl", "text", None),
        ("gsm8k/test.jsonl", "question", 1319),
        ("wikitext-2-raw/test.txt", "text", 1),
    ],
)
def test_real_files(shared_data, name, field, documents):
    found = texts(shared_data / name, field=field)
    assert len(found) == (documents or len(found)) > 0
    assert all(text.strip() for text in found)
