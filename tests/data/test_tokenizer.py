"""Tokenizers: ids as the library's own, bytes that add up, files and bad input."""

import json
import subprocess
import sys

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from sparse_jax.data import spans
from sparse_jax.data.bpe import END_OF_TEXT, train_bpe
from sparse_jax.data.tokenizer import load_tokenizer
from sparse_jax.types import InputError

TEXTS = [
    "",
    " ",
    "\n\n",
    "Once upon a time, there was a little girl.",
    "  two spaces before, two  inside, two after  ",
    "naïve café ☃ 𝄞 \u00a0\u3000 日本語",
    "def f(x):\n\treturn  x ** 2  # 3.14\r\n",
    "▁ is a sign of its own",
]
SAMPLE = "to be, or not to be: that is the question; naïve été. " * 50


@pytest.fixture(scope="module")
def bpe():
    return train_bpe([SAMPLE], vocab_size=320)


@pytest.fixture(scope="module")
def sentencepiece_dir(tmp_path_factory):
    import sentencepiece

    folder = tmp_path_factory.mktemp("sentencepiece")
    sentencepiece.SentencePieceTrainer.Train(
        sentence_iterator=iter(SAMPLE.split(";")),
        model_prefix=str(folder / "tokenizer"),
        model_type="bpe",
        vocab_size=300,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        minloglevel=2,
    )
    return folder


def metaspace(vocab):
    """Llama as transformers 4 converts it: Metaspace instead of a normalizer."""
    tokenizer = tokenizers.Tokenizer(
        tokenizers.models.BPE(
            vocab={token: i for i, token in enumerate(vocab)},
            merges=[("▁", "t"), ("▁t", "o")],
            unk_token="<unk>",
            byte_fallback=True,
            fuse_unk=True,
        )
    )
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace(
        prepend_scheme="first", split=False
    )
    return tokenizer


@pytest.fixture(scope="module")
def metaspace_file(tmp_path_factory):
    folder = tmp_path_factory.mktemp("metaspace")
    vocab = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256))]
    vocab += ["▁", *"abcdefghijklmnopqrstuvwxyz", "▁t", "▁to"]
    metaspace(vocab).save(str(folder / "tokenizer.json"))
    return folder / "tokenizer.json"


LLAMA_3_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@pytest.fixture(scope="module")
def llama3_file(bpe, tmp_path_factory):
    tokenizer = tokenizers.Tokenizer.from_buffer(bpe.files["tokenizer.json"])
    words = tokenizers.pre_tokenizers
    tokenizer.pre_tokenizer = words.Sequence(
        [
            words.Split(tokenizers.Regex(LLAMA_3_WORDS), "isolated"),
            words.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    folder = tmp_path_factory.mktemp("llama3")
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder / "tokenizer.json"


@pytest.fixture(
    params=["llama3", "bpe", "stories", "chars", "metaspace", "sentencepiece"]
)
def tokenizer(request, bpe):
    match request.param:
        case "bpe":
            return bpe
        case "stories":
            return load_tokenizer(
                request.getfixturevalue("shared_data") / "stories260K-hf"
            )
        case "chars":
            return load_tokenizer(
                request.getfixturevalue("shared_data") / "babyllama-hf"
            )
        case "metaspace" | "llama3":
            return load_tokenizer(request.getfixturevalue(f"{request.param}_file"))
        case _:
            return load_tokenizer(request.getfixturevalue("sentencepiece_dir"))


def test_bytes_add_up(tokenizer):
    for text in TEXTS:
        ids, nbytes = tokenizer.encode_with_bytes(text)
        assert ids.dtype == nbytes.dtype == np.int32
        np.testing.assert_array_equal(ids, tokenizer.encode(text))
        assert nbytes.sum() == (len(text.encode()) if len(ids) else 0), text
        assert len(ids) or not text.strip()
        assert (nbytes >= 0).all()


def test_batch_is_each_alone(tokenizer):
    for ids, text in zip(tokenizer.encode_batch(TEXTS), TEXTS, strict=True):
        np.testing.assert_array_equal(ids, tokenizer.encode(text))
        assert ids.dtype == np.int32


@pytest.mark.parametrize("name", ["stories260K-hf", "babyllama-hf"])
def test_ids_are_those_of_the_library(shared_data, name):
    path = shared_data / name
    ours = load_tokenizer(path)
    theirs = tokenizers.Tokenizer.from_file(str(path / "tokenizer.json"))
    text = (shared_data / "tinystories" / "tinystories_sample.txt").read_text()[
        :200_000
    ]
    for some in [*TEXTS, text]:
        want = theirs.encode(some, add_special_tokens=False).ids
        assert ours.encode(some).tolist() == want
        assert ours.encode_with_bytes(some)[0].tolist() == want
    assert ours.bos_id == 1 and ours.eos_id == 2
    assert ours.vocab_size == theirs.get_vocab_size()
    assert set(ours.files) == {"tokenizer.json", "tokenizer_config.json"}


def test_sentencepiece_ids_are_those_of_the_library(sentencepiece_dir):
    import sentencepiece

    ours = load_tokenizer(sentencepiece_dir / "tokenizer.model")
    theirs = sentencepiece.SentencePieceProcessor(
        model_file=str(sentencepiece_dir / "tokenizer.model")
    )
    for text in TEXTS:
        assert ours.encode(text).tolist() == theirs.EncodeAsIds(text)
        if "▁" not in text:
            assert ours.decode(ours.encode(text)) == text
    assert (ours.bos_id, ours.eos_id, ours.vocab_size) == (1, 2, 300)
    assert list(ours.files) == ["tokenizer.model"]


def test_decode_inverts_encode(bpe, shared_data):
    for text in TEXTS:
        assert bpe.decode(bpe.encode(text)) == text
    stories = load_tokenizer(shared_data / "stories260K-hf")
    for text in TEXTS[:-1]:  # to SentencePiece ▁ is a space
        assert stories.decode(stories.encode(text)) == text


@settings(max_examples=100, deadline=None)
@given(text=st.text())
def test_byte_level_is_lossless_on_any_text(bpe, text):
    ids, nbytes = bpe.encode_with_bytes(text)
    assert bpe.decode(ids) == text
    assert nbytes.sum() == len(text.encode())


def test_bytes_of_each_token(shared_data, bpe):
    stories = load_tokenizer(shared_data / "stories260K-hf")
    # ▁Once | ▁ | ▁upon | ▁ | é | <0x0A> | three bytes of ☃ | x
    _, nbytes = stories.encode_with_bytes("Once  upon é\n☃x")
    assert nbytes.tolist() == [4, 1, 5, 1, 2, 1, 1, 1, 1, 1]
    chars = load_tokenizer(shared_data / "babyllama-hf")
    # ▁ (put there, 0 bytes) | O | <unk> for ☃☃ | ▁ | x
    _, nbytes = chars.encode_with_bytes("O☃☃ x")
    assert nbytes.tolist() == [0, 1, 6, 1, 1]
    _, nbytes = bpe.encode_with_bytes("☃")
    assert nbytes.tolist() == [1, 1, 1]


def test_bytes_of_a_sentencepiece_model_that_changes_the_text(tmp_path):
    import sentencepiece

    sentencepiece.SentencePieceTrainer.Train(
        sentence_iterator=iter(SAMPLE.split(";")),
        model_prefix=str(tmp_path / "spm"),  # found under another name, too
        model_type="unigram",
        vocab_size=24,
        minloglevel=2,
    )
    tokenizer = load_tokenizer(tmp_path)
    text = "to  be ☃☃ or  "  # spaces are collapsed, snowmen unknown
    ids, nbytes = tokenizer.encode_with_bytes(text)
    assert len(ids) == len(nbytes)
    assert nbytes.sum() == len(text.encode())
    assert 6 in nbytes or 7 in nbytes


def test_bytes_of_a_tokenizer_that_changes_the_text(tmp_path):
    tokenizer = metaspace(["<unk>", "▁", "t", "o", "e", "▁t", "▁to"])
    normalizers = tokenizers.normalizers
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFD(), normalizers.StripAccents(), normalizers.Strip()]
    )
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    ids, nbytes = load_tokenizer(tmp_path).encode_with_bytes("  to été  ")
    assert len(ids) == len(nbytes)
    assert nbytes.sum() == len("  to été  ".encode())
    assert (nbytes >= 0).all()


@pytest.mark.parametrize("size", [1, 7, 100])
def test_cutting_changes_nothing(tokenizer, size, shared_data, monkeypatch):
    text = (shared_data / "tinystories" / "tinystories_sample.txt").read_text()[:20_000]
    text += "".join(TEXTS) + "a  b c 1 2 x. y\n z 'tis it's we'll go"
    want = tokenizer.encode(text)
    monkeypatch.setattr(spans.cut, "__defaults__", (size,))
    np.testing.assert_array_equal(tokenizer.encode(text), want)
    ids, nbytes = tokenizer.encode_with_bytes(text)
    np.testing.assert_array_equal(ids, want)
    assert nbytes.sum() == len(text.encode())


def test_long_texts_are_really_cut(bpe, shared_data, metaspace_file, llama3_file):
    stories = load_tokenizer(shared_data / "stories260K-hf")
    assert bpe._style == load_tokenizer(llama3_file)._style == "byte_level"
    assert stories._style == load_tokenizer(metaspace_file)._style == "sentencepiece"


def test_a_token_across_a_space_forbids_cutting():
    spec = json.loads(metaspace(["<unk>", "▁", "t", "o", "▁t", "▁to"]).to_str())
    assert spans.cut_style(spec, {"▁": 0, "a": 1}) == "sentencepiece"
    assert spans.cut_style(spec, {"▁": 0, "a": 1, "a▁": 2}) == "never"


def test_training_is_deterministic(bpe):
    assert train_bpe([SAMPLE], vocab_size=320).files == bpe.files
    program = (
        "from sparse_jax.data.bpe import train_bpe;"
        f"print(train_bpe([{SAMPLE!r}], vocab_size=320).fingerprint)"
    )
    found = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert found.stdout.strip() == bpe.fingerprint


def test_trained_tokenizer_files_load_again(bpe, tmp_path):
    for name, content in bpe.files.items():
        (tmp_path / name).write_bytes(content)
    again = load_tokenizer(tmp_path)
    assert again.fingerprint == bpe.fingerprint
    assert again.bos_id == again.eos_id == again.separator_id == 0
    assert again.decode([0]) == END_OF_TEXT
    assert again.files == bpe.files


def test_truncation_asked_for_by_a_file_is_ignored(bpe, tmp_path):
    spec = json.loads(bpe.files["tokenizer.json"])
    spec["truncation"] = {
        "direction": "Right",
        "max_length": 4,
        "strategy": "LongestFirst",
        "stride": 0,
    }
    (tmp_path / "tokenizer.json").write_text(json.dumps(spec))
    assert len(load_tokenizer(tmp_path).encode(SAMPLE)) > 4


@pytest.mark.parity
def test_transformers_reads_the_trained_tokenizer(bpe, tmp_path):
    transformers = pytest.importorskip("transformers")
    for name, content in bpe.files.items():
        (tmp_path / name).write_bytes(content)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for text in TEXTS:
        assert (
            theirs.encode(text, add_special_tokens=False) == bpe.encode(text).tolist()
        )
    assert theirs.bos_token_id == theirs.eos_token_id == 0


def write(folder, name, content):
    (folder / name).write_bytes(content)
    return folder


def test_bad_input(bpe, tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        load_tokenizer(tmp_path / "missing")
    with pytest.raises(InputError, match="holds no tokenizer"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(b"not a model")
    with pytest.raises(InputError, match="not a SentencePiece model"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text('{"model": 3}')
    with pytest.raises(InputError, match=r"tokenizer\.json is not a tokenizer"):
        load_tokenizer(tmp_path)
    with pytest.raises(InputError, match="at least 257"):
        train_bpe([SAMPLE], vocab_size=256)


def test_bad_special_tokens(bpe, tmp_path):
    write(tmp_path, "tokenizer.json", bpe.files["tokenizer.json"])
    write(tmp_path, "tokenizer_config.json", b'{"eos_token": "<stop>"}')
    with pytest.raises(InputError, match="eos_token '<stop>'"):
        load_tokenizer(tmp_path)
    write(tmp_path, "tokenizer_config.json", b"{")
    with pytest.raises(InputError, match="not a JSON object"):
        load_tokenizer(tmp_path)
    config = b'{"eos_token": {"content": "<|endoftext|>"}, "bos_token": null}'
    write(tmp_path, "tokenizer_config.json", config)
    tokenizer = load_tokenizer(tmp_path)
    assert (tokenizer.bos_id, tokenizer.eos_id) == (None, 0)
    write(tmp_path, "tokenizer_config.json", b'{"eos_token": null, "bos_token": null}')
    with pytest.raises(InputError, match="neither an eos nor a bos"):
        _ = load_tokenizer(tmp_path).separator_id
