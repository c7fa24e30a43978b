"""Text that comes in pieces is the text of the whole."""

import pytest

from sparse_jax import data
from sparse_jax.infer.text import TextStream

TEXT = "Zwölf Boxkämpfer 🥊🥊 jagen Viktor — über den Sylter Deich. 東京 naïve\n  x"


def pieces(tokenizer, ids, before=()):
    stream = TextStream(tokenizer, before)
    return [stream.push(token) for token in ids] + [stream.flush()]


@pytest.fixture(params=["bytes", "sentencepiece"])
def tokenizer(request):
    if request.param == "bytes":
        return data.train_bpe(["only plain letters here"], vocab_size=260)
    return request.getfixturevalue("shared_data") and data.load_tokenizer(
        request.getfixturevalue("shared_data") / "stories260K-hf"
    )


def test_no_character_is_cut_and_no_space_is_lost(tokenizer):
    ids = tokenizer.encode(TEXT).tolist()
    whole = tokenizer.decode(ids)
    found = pieces(tokenizer, ids)
    assert "".join(found) == whole
    assert whole.strip() == TEXT
    assert not any("\ufffd" in piece for piece in found)
    assert len([piece for piece in found if piece]) > len(TEXT) // 5  # it does stream
    # Behind a prompt, its text is not repeated and the space after it stays.
    for cut in range(1, len(ids), 3):
        before = tokenizer.decode(ids[:cut])
        if not before.endswith("\ufffd"):
            behind = pieces(tokenizer, ids[cut:], ids[:cut])
            assert before + "".join(behind) == whole


def test_half_a_character_comes_at_the_end(tokenizer):
    ids = tokenizer.encode("a🥊").tolist()[:-1]
    *early, last = pieces(tokenizer, ids)
    assert "\ufffd" not in "".join(early) and "\ufffd" in last
    # Bytes that never become a character are not held back for ever.
    assert "".join(pieces(tokenizer, [ids[-1]] * 40)[:-1]).count("\ufffd") > 20
