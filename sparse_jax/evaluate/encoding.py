"""Texts to token ids, cut into context and continuation as lm-eval does it.

The rules are those of lm-eval's Hugging Face backend, version 0.4.13, so that numbers
compare: https://github.com/EleutherAI/lm-evaluation-harness.
"""

import json
from collections.abc import Sequence

from sparse_jax.data.tokenizer import Tokenizer
from sparse_jax.types import InputError

Ids = list[int]


class Encoder:
    """Encodes whole texts, and pairs of a context and its continuation.

    Attributes:
      tokenizer: what encodes.
      prefix_id: the token that stands where there is no context: bos, else eos.
      special_ids: tokens that are no part of a text.
    """

    def __init__(self, tokenizer: Tokenizer, add_bos_token: bool | None = None):
        """Finds out which special tokens the tokenizer puts around a text.

        Args:
          tokenizer: what encodes.
          add_bos_token: whether a text begins with bos; None = as the tokenizer's own
            files have it, which is what Hugging Face's `encode` does.

        Raises:
          InputError: the tokenizer names neither bos nor eos, or not the bos asked for.
        """
        self.tokenizer = tokenizer
        prefix = tokenizer.eos_id if tokenizer.bos_id is None else tokenizer.bos_id
        if prefix is None:
            raise InputError(
                "the tokenizer names neither a bos nor an eos token, so a text without "
                "context cannot be scored: name one in its tokenizer_config.json"
            )
        self.prefix_id: int = prefix
        self.special_ids = special_ids(tokenizer)
        self._before, self._after = special_tokens(tokenizer, add_bos_token)
        self._prefix_text = tokenizer.decode([self.prefix_id])

    def encode(self, texts: Sequence[str], *, special: bool = True) -> list[Ids]:
        """The ids of texts; a text that occurs again is encoded once.

        Args:
          texts: what is encoded.
          special: put special tokens around them; a text that itself begins with the
            prefix token's text gets none.
        """
        unique = list(dict.fromkeys(texts))
        found = {}
        for text, ids in zip(unique, self.tokenizer.encode_batch(unique), strict=True):
            plain = ids.tolist()
            if special and not (
                self._prefix_text and text.startswith(self._prefix_text)
            ):
                plain = [*self._before, *plain, *self._after]
            found[text] = plain
        return [found[text] for text in texts]

    def pairs(self, requests: Sequence[tuple[str, str]]) -> list[tuple[Ids, Ids]]:
        """The ids of contexts and of their continuations.

        White space at the end of a context belongs to the continuation; then

            whole = encode(context + continuation)
            continuation = whole[len(encode(context)) :]

        An empty context becomes the prefix token.

        Args:
          requests: (context, continuation) of each.

        Raises:
          InputError: a continuation has no token of its own.
        """
        split = [_move_spaces(*request) for request in requests]
        wholes = self.encode([context + rest for context, rest in split])
        contexts = self.encode([context for context, _ in split])
        bare = self.encode(
            [rest for context, rest in requests if not context], special=False
        )
        left, pairs = iter(bare), []
        for (context, rest), whole, before in zip(
            requests, wholes, contexts, strict=True
        ):
            if context == "":
                pair = self._behind_prefix(next(left))
            else:
                pair = before or [self.prefix_id], whole[len(before) :]
            if not pair[1]:
                raise InputError(
                    f"the continuation {rest!r} of {context[-40:]!r} has no token of "
                    "its own: both together encode to no more tokens than the context; "
                    "change the task's text"
                )
            pairs.append(pair)
        return pairs

    def _behind_prefix(self, ids: Ids) -> tuple[Ids, Ids]:
        if ids[:1] == [self.prefix_id]:
            return ids[:1], ids[1:]
        return [self.prefix_id], ids


def _move_spaces(context: str, continuation: str) -> tuple[str, str]:
    bare = context.rstrip()
    return bare, context[len(bare) :] + continuation


def special_tokens(
    tokenizer: Tokenizer, add_bos_token: bool | None = None
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The ids that Hugging Face's `encode` puts before and after a text.

    They are those of tokenizer.json's post-processor, unless tokenizer_config.json says
    `add_bos_token` or `add_eos_token`. A SentencePiece model gets a bos by default.

    Args:
      tokenizer: with its files.
      add_bos_token: see `Encoder`; False = no special tokens at all.

    Raises:
      InputError: bos is asked for, and the tokenizer names none.
    """
    if add_bos_token is False:
        return (), ()
    said = json.loads(tokenizer.files.get("tokenizer_config.json", b"{}"))
    begins, ends = said.get("add_bos_token"), said.get("add_eos_token")
    if add_bos_token is None and begins is None and ends is None:
        if "tokenizer.json" in tokenizer.files:
            return _around(tokenizer.files["tokenizer.json"])
        begins = True
    if add_bos_token and tokenizer.bos_id is None:
        raise InputError(
            "add_bos_token: the tokenizer names no bos token; name one in its "
            "tokenizer_config.json or leave the option out"
        )
    chosen = (begins or add_bos_token, tokenizer.bos_id), (ends, tokenizer.eos_id)
    before, after = (
        (token,) if wanted and token is not None else () for wanted, token in chosen
    )
    return before, after


def special_ids(tokenizer: Tokenizer) -> frozenset[int]:
    """The ids of bos and eos, and of all that a tokenizer.json calls special."""
    named = [i for i in (tokenizer.bos_id, tokenizer.eos_id) if i is not None]
    spec = json.loads(tokenizer.files.get("tokenizer.json", b"{}"))
    added = spec.get("added_tokens") or []
    special = [int(token["id"]) for token in added if token.get("special")]
    return frozenset([*named, *special])


def _around(content: bytes) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """What a tokenizer.json's post-processor puts around a text."""
    if not json.loads(content).get("post_processor"):
        return (), ()
    import tokenizers

    library = tokenizers.Tokenizer.from_buffer(content)
    library.no_truncation()
    library.no_padding()
    bare = library.encode("a", add_special_tokens=False).ids
    whole = library.encode("a", add_special_tokens=True).ids
    last = len(whole) - len(bare)
    start = next(i for i in range(last + 1) if whole[i : i + len(bare)] == bare)
    return tuple(whole[:start]), tuple(whole[start + len(bare) :])
