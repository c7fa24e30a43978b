"""Tokenizers that know how many bytes of text every token stands for.

Two formats: `tokenizer.json` (Hugging Face) and `*.model` (SentencePiece). No method
adds special tokens; `bos_id` and `eos_id` say which they are.
"""

import abc
import functools
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import tokenizers
from jaxtyping import Int32

from sparse_jax.data import spans
from sparse_jax.data.special_tokens import special_tokens
from sparse_jax.types import InputError

Ids = Int32[np.ndarray, " n"]

_GROUP_CHARS = 4_000_000

# What stands beside the vocabulary in a Hugging Face directory.
_COMPANIONS = (
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "tokenizer.model",
)


class Tokenizer(abc.ABC):
    """Text to token ids and back.

    Attributes:
      vocab_size: one more than the largest id.
      bos_id: id of the beginning-of-sequence token, None if there is none.
      eos_id: id of the end-of-sequence token, None if there is none.
      files: name -> content of the files to carry along when a model is exported.
      fingerprint: sha256 over everything that decides how text is encoded.
    """

    vocab_size: int
    bos_id: int | None
    eos_id: int | None
    files: dict[str, bytes]

    @property
    def fingerprint(self) -> str:
        """The sha256 over the vocabulary file and the special tokens' ids."""
        main = (
            "tokenizer.json" if isinstance(self, JsonTokenizer) else "tokenizer.model"
        )
        digest = hashlib.sha256(self.files[main])
        digest.update(f"{self.bos_id} {self.eos_id}".encode())
        return digest.hexdigest()

    @abc.abstractmethod
    def encode_batch(self, texts: Sequence[str]) -> list[Ids]:
        """The ids of each text, encoded in parallel; one int32 array [n] per text."""

    @abc.abstractmethod
    def encode_with_bytes(self, text: str) -> tuple[Ids, Ids]:
        """The ids of a text, and the number of its UTF-8 bytes each stands for.

        The counts add up to the bytes of `text`. A character split over several
        byte-level tokens gives each its own bytes; the space that a SentencePiece
        model puts before the text counts 0; an unknown token counts its source's
        bytes.

        Returns:
          ids int32 [n] and nbytes int32 [n].
        """

    @abc.abstractmethod
    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """The text of a sequence of ids; special tokens are spelled out."""

    @abc.abstractmethod
    def piece(self, token: int) -> str:
        """How a token is spelled; a special one as templates write it."""

    def encode(self, text: str) -> Ids:
        """The ids of a text, int32 [n]."""
        return self.encode_batch([text])[0]

    @property
    def separator_id(self) -> int:
        """The token put after every document: eos, or bos where there is no eos.

        Raises:
          InputError: the tokenizer has neither.
        """
        for token in (self.eos_id, self.bos_id):
            if token is not None:
                return token
        raise InputError(
            "the tokenizer names neither an eos nor a bos token, so documents cannot "
            "be separated: name one in its tokenizer_config.json"
        )


class JsonTokenizer(Tokenizer):
    """A tokenizer.json, run by the `tokenizers` library."""

    def __init__(self, files: Mapping[str, bytes], where: str = "tokenizer.json"):
        self.files = dict(files)
        self._tokenizer = _parse(self.files["tokenizer.json"], where)
        # A file may ask for truncation to the length some model was trained with.
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        vocab = self._tokenizer.get_vocab(with_added_tokens=True)
        if not vocab:
            raise InputError(
                f"{where} holds an empty vocabulary: use another tokenizer"
            )
        self.vocab_size = max(vocab.values()) + 1
        special = special_tokens(self.files, vocab, where)
        self.bos_id, self.eos_id = special["bos_token"], special["eos_token"]
        self._spec = json.loads(self.files["tokenizer.json"])
        self._bytes = spans.ByteTable(self._spec, vocab)
        self._style = spans.cut_style(self._spec, vocab)

    def encode_batch(self, texts: Sequence[str]) -> list[Ids]:
        """See `Tokenizer.encode_batch`."""
        pieces, counts = [], []
        for text in texts:
            cut = spans.cut(text, self._style)
            pieces += cut
            counts.append(len(cut))
        arrays = self._encode_pieces(pieces)
        return [_concatenate([next(arrays) for _ in range(n)]) for n in counts]

    def encode_with_bytes(self, text: str) -> tuple[Ids, Ids]:
        """See `Tokenizer.encode_with_bytes`."""
        ids, nbytes = [], []
        pieces = spans.cut(text, self._style)
        for start, group in _groups(pieces):
            encodings = self._tokenizer.encode_batch(group, add_special_tokens=False)
            for k, (piece, encoding) in enumerate(zip(group, encodings, strict=True)):
                ids.append(np.array(encoding.ids, np.int32))
                # A cut took the space before a later piece away if the tokenizer puts
                # it back: there it is text, and counts.
                restored = self._style == "sentencepiece" and start + k > 0
                offsets = functools.partial(getattr, encoding, "offsets")
                nbytes.append(self._bytes.count(piece, ids[-1], offsets, restored))
        return _concatenate(ids), _concatenate(nbytes)

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """See `Tokenizer.decode`."""
        plain: list[int] = np.asarray(ids, np.int64).tolist()
        return self._tokenizer.decode(plain, skip_special_tokens=False)

    def piece(self, token: int) -> str:
        """See `Tokenizer.piece`."""
        return self._tokenizer.id_to_token(token) or ""

    def _encode_pieces(self, pieces: Sequence[str]) -> Iterator[Ids]:
        for _, group in _groups(pieces):
            encodings = self._tokenizer.encode_batch_fast(
                group, add_special_tokens=False
            )
            for encoding in encodings:
                yield np.array(encoding.ids, np.int32)


class SentencePieceTokenizer(Tokenizer):
    """A SentencePiece .model file."""

    def __init__(self, files: Mapping[str, bytes], where: str = "tokenizer.model"):
        # 50 ms that a run with a tokenizer.json need not pay.
        import sentencepiece

        self.files = dict(files)
        self._processor = sentencepiece.SentencePieceProcessor()
        try:
            self._processor.LoadFromSerializedProto(self.files["tokenizer.model"])
        except (OSError, RuntimeError) as error:
            raise InputError(
                f"{where} is not a SentencePiece model ({error}): convert it to a "
                "tokenizer.json"
            ) from error
        self.vocab_size = self._processor.GetPieceSize()
        bos, eos = self._processor.bos_id(), self._processor.eos_id()
        self.bos_id = bos if bos >= 0 else None
        self.eos_id = eos if eos >= 0 else None
        self._bytes = spans.ByteTable.of_sentencepiece(self._processor)

    def encode_batch(self, texts: Sequence[str]) -> list[Ids]:
        """See `Tokenizer.encode_batch`."""
        batch = self._processor.Encode(list(texts), out_type=int, num_threads=-1)
        return [np.array(ids, np.int32) for ids in batch]

    def encode_with_bytes(self, text: str) -> tuple[Ids, Ids]:
        """See `Tokenizer.encode_with_bytes`."""
        ids = self.encode(text)
        offsets = functools.partial(self._offsets, text)
        return ids, self._bytes.count(text, ids, offsets, False)

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """See `Tokenizer.decode`."""
        return self._processor.Decode(np.asarray(ids, np.int64).tolist())

    def piece(self, token: int) -> str:
        """See `Tokenizer.piece`."""
        return self._processor.IdToPiece(token)

    def _offsets(self, text: str) -> list[tuple[int, int]]:
        return self._processor.EncodeAsOffsetMapping(text)["offsets"]


def load_tokenizer(path: str | Path) -> Tokenizer:
    """Loads a tokenizer.json, a SentencePiece *.model, or a directory with one.

    Args:
      path: the file, or a directory, where a tokenizer.json is preferred.

    Raises:
      InputError: nothing there, or a file that is not a tokenizer.
    """
    path = Path(path)
    if path.is_dir():
        usual = [path / "tokenizer.json", path / "tokenizer.model"]
        found = [
            file for file in [*usual, *sorted(path.glob("*.model"))] if file.exists()
        ]
        if not found:
            raise InputError(
                f"{path} holds no tokenizer: expected tokenizer.json or "
                "tokenizer.model there"
            )
        folder, main = path, found[0]
    elif path.is_file():
        folder, main = path.parent, path
    else:
        raise InputError(
            f"tokenizer {path} does not exist: name a tokenizer.json, a SentencePiece "
            "*.model, or a directory with one"
        )
    kind = "tokenizer.model" if main.suffix == ".model" else "tokenizer.json"
    files = {kind: main.read_bytes()}
    for name in _COMPANIONS:
        if name not in files and (folder / name).is_file():
            files[name] = (folder / name).read_bytes()
    if kind == "tokenizer.model":
        return SentencePieceTokenizer(files, str(main))
    return JsonTokenizer(files, str(main))


def _parse(content: bytes, where: str) -> tokenizers.Tokenizer:
    try:
        return tokenizers.Tokenizer.from_buffer(content)
    except Exception as error:  # the Rust library raises bare Exceptions
        raise InputError(
            f"{where} is not a tokenizer.json that the tokenizers library can read "
            f"({error}): check the file"
        ) from error


def _concatenate(arrays: list[np.ndarray]) -> np.ndarray:
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)


def _groups(pieces: Sequence[str]) -> Iterator[tuple[int, Sequence[str]]]:
    """Pieces of about 4 MB together, with the number of the first.

    The library's own results take some 100 bytes a token: only so many at a time.
    """
    start, size = 0, 0
    for number, piece in enumerate(pieces, 1):
        size += len(piece)
        if size >= _GROUP_CHARS or number == len(pieces):
            yield start, pieces[start:number]
            start, size = number, 0
