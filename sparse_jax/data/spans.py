"""Which bytes a token stands for, and where a text may be cut before encoding.

Both are read off the tokenizer's own description, so that what is counted and cut is
exact: a tokenizer of a kind not known here is never cut, and its bytes are counted by
source offsets.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from jaxtyping import Int32

CutStyle = Literal["byte_level", "sentencepiece", "never"]

_SPACE = "▁"  # SentencePiece's sign for a space
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
_PIECE_CHARS = 1 << 16


class ByteTable:
    """UTF-8 bytes that each token of a vocabulary stands for.

    Args:
      spec: a parsed tokenizer.json.
      vocab: token -> id, added tokens included.
    """

    def __init__(self, spec: Mapping[str, Any], vocab: Mapping[str, int]) -> None:
        model = spec["model"]
        byte_level = "ByteLevel" in json.dumps(
            [spec.get("pre_tokenizer"), spec.get("decoder")]
        )
        added = {token["content"] for token in spec.get("added_tokens") or ()}
        self._nbytes = np.zeros(max(vocab.values()) + 1, np.int32)
        for token, index in vocab.items():
            if token in added:
                self._nbytes[index] = len(token.encode())
            elif byte_level:  # one printable character per byte
                self._nbytes[index] = len(token)
            else:
                self._nbytes[index] = _piece_bytes(token)
        unknown = vocab.get(model.get("unk_token") or "")
        if unknown is not None:
            self._nbytes[unknown] = -1
        self._prefixed = _prefix_space(spec)

    @classmethod
    def of_sentencepiece(cls, processor) -> "ByteTable":
        """The table of a `SentencePieceProcessor`."""
        table = cls.__new__(cls)
        pieces = [processor.IdToPiece(i) for i in range(processor.GetPieceSize())]
        table._nbytes = np.array([_piece_bytes(piece) for piece in pieces], np.int32)
        table._nbytes[processor.unk_id()] = -1
        # Off only if the model was trained with add_dummy_prefix=false.
        table._prefixed = processor.EncodeAsPieces("x")[:1] != ["x"]
        return table

    def count(
        self,
        text: str,
        ids: Int32[np.ndarray, " n"],
        offsets: Callable[[], Sequence[Sequence[int]]],
        restored: bool,
    ) -> Int32[np.ndarray, " n"]:
        """Bytes per token; they add up to the bytes of `text`.

        Args:
          text: what was encoded.
          ids: int32 [n], its tokens.
          offsets: gives the first and last + 1 character of `text` that each token
            came from; asked only where the table does not know.
          restored: the text lost a space in front that the tokenizer put back, and
            that counts.
        """
        nbytes = self._nbytes[ids]
        (unknown,) = np.nonzero(nbytes < 0)
        if unknown.size:
            ends, chars = _byte_ends(text), np.array(offsets())[unknown]
            nbytes[unknown] = ends[chars[:, 1]] - ends[chars[:, 0]]
        if self._prefixed and not restored and nbytes.size:
            nbytes[0] -= 1
        total = len(text.encode()) + restored
        if nbytes.sum() == total and (nbytes >= 0).all():
            return nbytes
        # The tokenizer normalises (case, Unicode forms, spaces): go by its offsets.
        return _covered(_byte_ends(text), offsets(), restored)


def _piece_bytes(piece: str) -> int:
    if _BYTE.fullmatch(piece):
        return 1
    return len(piece.replace(_SPACE, " ").encode())


def _byte_ends(text: str) -> Int32[np.ndarray, " chars_and_1"]:
    """Bytes before each character, and at last the bytes of the whole text."""
    points = np.frombuffer(text.encode("utf-32-le"), np.uint32)
    width = 1 + (points > 0x7F) + (points > 0x7FF) + (points > 0xFFFF).astype(np.int32)
    return np.concatenate([[0], np.cumsum(width)]).astype(np.int32)


def _covered(
    ends: Int32[np.ndarray, " chars_and_1"],
    offsets: Sequence[Sequence[int]],
    restored: bool,
) -> Int32[np.ndarray, " n"]:
    """Gives each token the bytes that no token before it reached.

    Text that leaves no token behind (stripped spaces) goes to the token after it, at
    the end of the text to the last token.
    """
    if not offsets:
        return np.zeros(0, np.int32)
    reached = np.maximum.accumulate(ends[[offset[1] for offset in offsets]])
    reached[-1] = ends[-1]
    nbytes = np.diff(reached, prepend=0).astype(np.int32)
    nbytes[0] += restored
    return nbytes


def _nodes(node: Any) -> list[dict[str, Any]]:
    """A normalizer or pre-tokenizer as a flat list of steps."""
    if node is None:
        return []
    if node["type"] == "Sequence":
        children = node.get("normalizers") or node.get("pretokenizers") or ()
        return [step for child in children for step in _nodes(child)]
    return [node]


def _prefix_space(spec: Mapping[str, Any]) -> bool:
    """Whether the tokenizer puts a space before the text."""
    for step in _nodes(spec.get("normalizer")) + _nodes(spec.get("pre_tokenizer")):
        match step:
            case {"type": "Prepend"}:
                return True
            case {"type": "Metaspace"}:
                return step.get("prepend_scheme", "always") != "never"
            case {"type": "ByteLevel"}:
                return bool(step.get("add_prefix_space"))
    return False


def cut_style(spec: Mapping[str, Any], vocab: Mapping[str, int]) -> CutStyle:
    """How a long text may be cut so that its pieces encode to the same tokens.

    `byte_level`: the tokenizer splits words by one of the usual patterns, all of
    which end a word before a space between two letters: cut there. `sentencepiece`:
    no token holds a space after another character, so no merge crosses one, and the
    space that a cut takes away is the one the tokenizer puts before each text.
    """
    added = spec.get("added_tokens") or ()
    if any(t["lstrip"] or t["rstrip"] or " " in t["content"] for t in added):
        return "never"
    normalizer = _nodes(spec.get("normalizer"))
    words = _nodes(spec.get("pre_tokenizer"))
    if spec["model"].get("type") != "BPE":
        return "never"
    if not normalizer and words and words[-1]["type"] == "ByteLevel":
        prefix = any(step.get("add_prefix_space") for step in words)
        return "byte_level" if not prefix and _known_pattern(words) else "never"
    prepends = [step["type"] for step in normalizer] == ["Prepend", "Replace"]
    metaspace = [step["type"] for step in words] == ["Metaspace"]
    spaces = prepends and not words and normalizer[0]["prepend"] == _SPACE
    spaces |= metaspace and not normalizer and _prefix_space(spec)
    crossing = any(re.search(f"[^{_SPACE}]{_SPACE}", token) for token in vocab)
    return "sentencepiece" if spaces and not crossing and _SPACE in vocab else "never"


def _known_pattern(words: Sequence[Mapping[str, Any]]) -> bool:
    """Whether words are split as GPT-2 does, or by a pattern derived from it."""
    if len(words) == 1:
        return words[0].get("use_regex", True)
    patterns = [
        step["pattern"].get("Regex", "") for step in words[:-1] if "pattern" in step
    ]
    return len(patterns) == len(words) - 1 and any(
        r"\p{L}+" in p and r"\s+(?!\S)" in p for p in patterns
    )


def cut(text: str, style: CutStyle, size: int = _PIECE_CHARS) -> list[str]:
    """Cuts a text into pieces of about `size` characters; see `cut_style`.

    Example:
      >>> cut("one two three", "byte_level", size=4)
      ['one', ' two', ' three']
      >>> cut("one two three", "sentencepiece", size=4)
      ['one', 'two', 'three']
    """
    pieces, start = [], 0
    if style != "never":
        space = re.compile("(?<=[A-Za-z]) (?=[A-Za-z])")
        while len(text) - start > size:
            found = space.search(text, start + size - 1)
            if found is None:
                break
            pieces.append(text[start : found.start()])
            start = found.end() if style == "sentencepiece" else found.start()
    return [*pieces, text[start:]]
