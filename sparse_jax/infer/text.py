"""Text of tokens that come one by one."""

from collections.abc import Sequence

from sparse_jax.data.tokenizer import Tokenizer

_CONTEXT = 4  # tokens before those that are decoded
_LONGEST = 8  # tokens that are held back
_HALF = "\ufffd"  # what a part of a character is decoded to


class TextStream:
    """Decodes tokens so that the pieces, put together, are the text of all of them.

    A tokenizer may need several tokens for one character, and drops the space before
    the first word of what it decodes. So tokens are decoded behind some earlier ones,
    and those that end inside a character are held back until the next.
    """

    def __init__(self, tokenizer: Tokenizer, before: Sequence[int] = ()):
        """Starts behind the tokens `before`, whose text is not given out."""
        self._tokenizer = tokenizer
        self._ids = list(before)[-_CONTEXT:]
        self._given = len(self._ids)  # tokens whose text has been given out

    def push(self, token: int) -> str:
        """The text that a token completes, "" while it is held back."""
        self._ids.append(token)
        text = self._pending()
        if text.endswith(_HALF) and len(self._ids) - self._given < _LONGEST:
            return ""
        self._ids = self._ids[-_CONTEXT - _LONGEST :]
        self._given = len(self._ids)
        return text

    def flush(self) -> str:
        """The text of what is still held back."""
        text = self._pending()
        self._given = len(self._ids)
        return text

    def _pending(self) -> str:
        start = max(0, self._given - _CONTEXT)
        before = self._tokenizer.decode(self._ids[start : self._given])
        return self._tokenizer.decode(self._ids[start:])[len(before) :]
