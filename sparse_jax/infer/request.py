"""What is asked of the engine, and what it answers."""

import dataclasses
import time
from collections.abc import Sequence

from sparse_jax.infer.runner import Runner
from sparse_jax.infer.sample import Sampling
from sparse_jax.io import PackedModel
from sparse_jax.types import InputError

Prompt = str | Sequence[int]
"""Text, or token ids as they are."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
    """A prompt to be continued.

    Attributes:
      ids: its tokens, at least one.
      max_tokens: the most that are written, at least one.
      sampling: how they are chosen.
      stop: texts that end the continuation where the first of them begins.
    """

    ids: tuple[int, ...]
    max_tokens: int
    sampling: Sampling
    stop: tuple[str, ...] = ()

    @property
    def length(self) -> int:
        """Tokens that are read: the last one written is not."""
        return len(self.ids) + self.max_tokens - 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Token:
    """A token that was written; its string is its text.

    Attributes:
      id: of the token.
      text: what it completes; "" inside a character, at the end of sequence, or
        without a tokenizer.
    """

    id: int
    text: str

    def __str__(self) -> str:
        return self.text


@dataclasses.dataclass(frozen=True, kw_only=True)
class Completion:
    """How a prompt was continued.

    Attributes:
      text: without the prompt, and without the stop text and what follows it.
      ids: what was written, an end of sequence or the tokens of a stop text included.
      prompt_tokens: number of tokens of the prompt.
      finish: "stop" at an end of sequence or a stop text, or, after as many tokens as
        were allowed, "length".
    """

    text: str
    ids: tuple[int, ...]
    prompt_tokens: int
    finish: str


@dataclasses.dataclass(kw_only=True)
class Rates:
    """Tokens and seconds of one call, reading prompts and writing apart.

    The reading of a prompt writes its first token. Compilation is left out.
    """

    prompt_tokens: int = 0
    prompt_seconds: float = 0.0
    tokens: int = 0
    seconds: float = 0.0
    compile_seconds: float = 0.0

    @property
    def prefill(self) -> float:
        """Tokens read per second."""
        return self.prompt_tokens / max(self.prompt_seconds, 1e-9)

    @property
    def decode(self) -> float:
        """Tokens written per second, the first of each prompt left out."""
        return self.tokens / max(self.seconds, 1e-9)

    def numbers(self) -> dict[str, float]:
        """All of them by name."""
        rates = {"prefill": self.prefill, "decode": self.decode}
        return dataclasses.asdict(self) | rates

    def __str__(self) -> str:
        return (
            f"{self.prompt_tokens} tokens read at {self.prefill:.1f}/s, {self.tokens} "
            f"written at {self.decode:.1f}/s, compiled in {self.compile_seconds:.1f} s"
        )


class Clock:
    """Seconds from one lap to the next, without those of compilation."""

    def __init__(self, runner: Runner):
        """Starts."""
        self._runner, self._since = runner, self._now(runner)

    def lap(self) -> float:
        """Seconds since the last lap or the start."""
        before, self._since = self._since, self._now(self._runner)
        return self._since - before

    @staticmethod
    def _now(runner: Runner) -> float:
        return time.perf_counter() - runner.compile_seconds


def end_of(model: PackedModel) -> int | None:
    """The token that ends a text: the tokenizer's, else the configuration's."""
    if model.tokenizer is not None:
        return model.tokenizer.eos_id
    return model.config.eos_token_id


def cut(text: str, stop: Sequence[str]) -> str:
    """A text up to the first stop text in it; each of them in turn shortens it.

    Example:
      >>> cut("4 eggs. Question: why?", ["Question:", "."])
      '4 eggs'
    """
    for end in stop:
        text = text.split(end)[0]
    return text


def make_request(
    model: PackedModel,
    prompt: Prompt,
    max_tokens: int,
    sampling: Sampling,
    stop: Sequence[str] = (),
) -> Request:
    """Encodes and checks a prompt.

    Args:
      model: what will continue it.
      prompt: text, before which the tokenizer's first token is put; or ids.
      max_tokens: the most that are written; fewer where the context ends.
      sampling: how they are chosen.
      stop: see `Engine.generate`.

    Raises:
      InputError: see `Engine.stream` and `Engine.generate`.
    """
    if max_tokens < 1:
        raise InputError(f"max_tokens must be >= 1, found {max_tokens}")
    if isinstance(stop, str) or not all(stop):
        raise InputError(f"stop must be texts that are not empty, found {stop!r}")
    if stop and model.tokenizer is None:
        raise InputError("stop texts need a tokenizer, which the model does not have")
    ids = _encode(model, prompt) if isinstance(prompt, str) else tuple(prompt)
    if not ids:
        raise InputError("the prompt is empty and the tokenizer names no first token")
    context, vocab = model.config.context, model.config.vocab_size
    if len(ids) > context:
        raise InputError(
            f"the prompt has {len(ids)} tokens, more than the model's context of "
            f"{context}; shorten it"
        )
    if not 0 <= min(ids) <= max(ids) < vocab:
        raise InputError(f"the prompt's ids must be in [0, {vocab}), found {ids}")
    # The last token written need not fit: it is not read.
    most = context - len(ids) + 1
    max_tokens = min(max_tokens, most)
    return Request(ids=ids, max_tokens=max_tokens, sampling=sampling, stop=tuple(stop))


def _encode(model: PackedModel, prompt: str) -> tuple[int, ...]:
    tokenizer = model.tokenizer
    if tokenizer is None:
        raise InputError(
            "the model has no tokenizer; put one (tokenizer.json or tokenizer.model) "
            "into its directory and export it again"
        )
    first = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
    return (*first, *tokenizer.encode(prompt).tolist())
