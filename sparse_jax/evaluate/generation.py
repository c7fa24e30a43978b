"""Continuations of texts, cut where lm-eval's tasks want them cut."""

import dataclasses
from collections.abc import Sequence

import tqdm

from sparse_jax.evaluate.encoding import Encoder
from sparse_jax.evaluate.rows import checked_length
from sparse_jax.infer import Completion, Engine
from sparse_jax.types import InputError


@dataclasses.dataclass(frozen=True, kw_only=True)
class GenerateConfig:
    """How texts are continued.

    Attributes:
      max_tokens: the most tokens that are written.
      stop: texts that end a continuation; the end-of-sequence token does so, too.
      temperature: 0 = the likeliest token always; see `infer.Sampling`, as for the
        next two.
      top_k: only the k likeliest tokens; 0 = all.
      top_p: only the likeliest tokens of this probability.
      seed: of the first text; the next one has the next seed.
    """

    max_tokens: int = 256
    stop: tuple[str, ...] = ()
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Generated:
    """How a text was continued.

    Attributes:
      text: the continuation up to the first stop text, with the space before its first
        word where it has one, and without special tokens.
      tokens: how many were written.
      truncated: whether the beginning of the prompt was left out because it does not
        fit.
    """

    text: str
    tokens: int
    truncated: bool = False


def check_room(config: GenerateConfig, max_length: int) -> int:
    """The tokens that a prompt may have.

    Raises:
      InputError: there are none.
    """
    room = max_length - config.max_tokens
    if config.max_tokens < 1 or room < 1:
        raise InputError(
            f"max_tokens must be at least 1 and less than the {max_length} tokens that "
            f"the model reads, found {config.max_tokens}"
        )
    return room


class Generator:
    """Continues texts with the engine; see `infer`.

    Attributes:
      encoder: how texts become tokens.
      max_length: the most tokens that a prompt and its continuation have.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        max_length: int | None = None,
        batch_size: int = 16,
        add_bos_token: bool | None = None,
    ):
        """Takes an engine.

        Args:
          engine: with a model that has a tokenizer.
          max_length: None = `config.max_seq_len`.
          batch_size: prompts that are worked on at a time.
          add_bos_token: see `Encoder`.

        Raises:
          InputError: the model has no tokenizer, or max_length is out of range.
        """
        model = engine.model
        if model.tokenizer is None:
            raise InputError(f"{model.source}: the model has no tokenizer; add one")
        self._engine, self._batch_size = engine, batch_size
        self.encoder = Encoder(model.tokenizer, add_bos_token)
        self.max_length = checked_length(model.config, max_length)

    def generate(
        self, prompts: Sequence[str], config: GenerateConfig = GenerateConfig()
    ) -> list[Generated]:
        """Continues every prompt.

        Of a prompt, the last max_length - max_tokens tokens are read, as by lm-eval's
        Hugging Face backend.

        Args:
          prompts: texts; the tokenizer's own special tokens are put around them.
          config: how they are continued.

        Raises:
          InputError: max_tokens leaves no room for a prompt, or a setting is out of
            range; see `Engine.generate`.
        """
        room = check_room(config, self.max_length)
        if not prompts:
            return []
        prefix = self.encoder.prefix_id
        encoded = [ids or [prefix] for ids in self.encoder.encode(prompts)]
        with tqdm.tqdm(
            desc="writing", total=len(prompts), unit="text", disable=None
        ) as bar:
            completions = self._engine.generate(
                [ids[-room:] for ids in encoded],
                batch_size=self._batch_size,
                progress=bar.update,
                **dataclasses.asdict(config),
            )
        return [
            Generated(
                text=self._plain(one), tokens=len(one.ids), truncated=len(ids) > room
            )
            for ids, one in zip(encoded, completions, strict=True)
        ]

    def _plain(self, completion: Completion) -> str:
        """The text without special tokens, which the engine spells out."""
        text = completion.text
        for token in self.encoder.special_ids.intersection(completion.ids):
            text = text.replace(self.encoder.tokenizer.piece(token), "")
        return text
