"""The model as lm-eval sees it: three kinds of requests, each a list of texts."""

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from typing import Any

from sparse_jax import schema
from sparse_jax.data import chat
from sparse_jax.evaluate.generation import GenerateConfig
from sparse_jax.evaluate.language_model import LanguageModel
from sparse_jax.types import InputError

_log = logging.getLogger(__name__)

# Texts at a time where batch_size is "auto".
_ROWS = 16
# lm-eval's number of tokens where neither the task nor the user names one.
_MAX_TOKENS = 256
# Its names for that number, of which the first that is given counts.
_LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
_SAMPLING = ("temperature", "top_p", "top_k")


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdapterConfig:
    """What `--model_args` may say.

    Attributes:
      path: the model, whatever `io.resolve` finds: a Hugging Face, run or stage
        directory, or a packed file.
      batch_size: texts that are worked on at a time, as lm-eval's own flag gives it: a
        number, also as text, or "auto" for the usual 16.
      max_length: tokens of context; None = as many as the model has.
      add_bos_token: whether texts begin with the token that begins a sequence; None =
        as the tokenizer does by itself, like lm-eval's "hf".
      template: chat template, see `data.chat`; "chat" is the model's own.
    """

    path: str
    batch_size: int | str = "auto"
    max_length: int | None = None
    add_bos_token: bool | None = None
    template: str = "chat"

    @property
    def rows(self) -> int:
        """The batch size as a number.

        Raises:
          InputError: it is none.
        """
        text = str(self.batch_size)
        if text.startswith("auto"):
            return _ROWS
        if not text.isdecimal() or int(text) < 1:
            raise InputError(f"batch_size must be a number >= 1 or auto, found {text}")
        return int(text)


class Adapter:
    """A model of this project behind lm-eval's interface, apart from its base class.

    lm-eval's `device` is not used, JAX has a choice of its own (JAX_PLATFORMS); nor is
    `max_batch_size`, as "auto" tries nothing out.
    """

    def __init__(
        self,
        *,
        max_batch_size: int | None = None,
        device: str | None = None,
        **arguments: Any,
    ):
        """Finds the model.

        Args:
          max_batch_size: not used.
          device: not used.
          **arguments: see `AdapterConfig`.

        Raises:
          InputError: there is no such model, or an argument is not known or not right.
        """
        super().__init__()
        config = schema.build(AdapterConfig, arguments, "model_args")
        self._model = LanguageModel(
            config.path,
            batch_size=config.rows,
            max_length=config.max_length,
            add_bos_token=config.add_bos_token,
        )
        self._template = chat.chat_template(self._model.tokenizer, config.template)
        self._requests = self._truncated = 0

    def loglikelihood(
        self, requests: Sequence[Any], disable_tqdm: bool = False
    ) -> list[tuple[float, bool]]:
        """The log-likelihood of each continuation, and whether greedy decoding says it.

        Args:
          requests: `args` of each is (context, continuation).
          disable_tqdm: not used.
        """
        scores = self._model.loglikelihood([request.args for request in requests])
        self._count(scores)
        return [(score.logprob, score.is_greedy) for score in scores]

    def loglikelihood_rolling(
        self, requests: Sequence[Any], disable_tqdm: bool = False
    ) -> list[float]:
        """The log-likelihood of each whole text, long ones in windows.

        Args:
          requests: `args` of each is (text,).
          disable_tqdm: not used.
        """
        scores = self._model.rolling([request.args[0] for request in requests])
        return [score.logprob for score in scores]

    def generate_until(
        self, requests: Sequence[Any], disable_tqdm: bool = False
    ) -> list[str]:
        """The continuation of each prompt, up to the first of its stop strings.

        Args:
          requests: `args` of each is (prompt, options); see `generate_config`.
          disable_tqdm: not used.

        Raises:
          InputError: an option that is not known.
        """
        groups: dict[GenerateConfig, list[int]] = {}
        for number, request in enumerate(requests):
            config = generate_config(request.args[1])
            groups.setdefault(config, []).append(number)
        texts = [""] * len(requests)
        for config, numbers in groups.items():
            prompts = [requests[number].args[0] for number in numbers]
            results = self._model.generate(prompts, config)
            self._count(results)
            for number, result in zip(numbers, results, strict=True):
                texts[number] = result.text
        return texts

    def apply_chat_template(
        self, chat_history: Sequence[chat.Message], add_generation_prompt: bool = True
    ) -> str:
        """The text of a conversation.

        Args:
          chat_history: its turns.
          add_generation_prompt: end where the model is to begin; else behind the last
            turn's words, which the model is to continue.

        Raises:
          InputError: the template refuses it.
        """
        try:
            text = self._template.render(
                chat_history, add_generation_prompt=add_generation_prompt
            )
        except chat.TemplateError as error:
            raise InputError(
                f"{error}: leave --apply_chat_template out, or name another template "
                "with --model_args template=FILE"
            ) from error
        if add_generation_prompt:
            return text
        said = chat_history[-1]["content"].strip()
        return text[: text.rindex(said) + len(said)]

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """The template's source, which lm-eval writes into its results."""
        return self._template.source if chat_template else None

    @property
    def tokenizer_name(self) -> str:
        """What tells requests apart that lm-eval keeps from one run for the next."""
        return self._model.tokenizer.fingerprint

    def get_model_info(self) -> dict[str, Any]:
        """What lm-eval writes into its results beside the model's name."""
        return {
            "model_source": self._model.source,
            "max_length": self._model.max_length,
            "requests": self._requests,
            "truncated_requests": self._truncated,
        }

    def _count(self, results: Sequence[Any]) -> None:
        truncated = sum(result.truncated for result in results)
        self._requests += len(results)
        self._truncated += truncated
        if truncated:
            _log.warning(
                "%d of %d requests were longer than the context of %d tokens and lost "
                "their beginning",
                truncated,
                len(results),
                self._model.max_length,
            )


def generate_config(options: Mapping[str, Any]) -> GenerateConfig:
    """lm-eval's options of a generation as this project's.

    Args:
      options: `until` (one stop string or several), the number of tokens under any of
        lm-eval's names, `do_sample`, `temperature`, `top_p`, `top_k`.

    Raises:
      InputError: another option, or sampling at temperature 0.

    Example:
      >>> config = generate_config({"until": ["\\n\\n"], "max_gen_toks": 8})
      >>> config.stop, config.max_tokens, config.temperature
      (('\\n\\n',), 8, 0.0)
    """
    values = dict(options)
    until, sample = values.pop("until", None) or (), values.pop("do_sample", None)
    lengths = [values.pop(name, None) for name in _LENGTHS]
    given = [length for length in lengths if length is not None]
    if unknown := [name for name in values if name not in _SAMPLING]:
        known = ("until", "do_sample", *_LENGTHS, *_SAMPLING)
        raise InputError(schema.unknown_field("gen_kwargs", unknown[0], known))
    if sample is False:
        values = {}
    elif sample and not values.get("temperature"):
        raise InputError(
            "gen_kwargs.do_sample is true at temperature 0: set gen_kwargs.temperature "
            "above 0, or leave do_sample out"
        )
    values["max_tokens"] = given[0] if given else _MAX_TOKENS
    values["stop"] = (until,) if isinstance(until, str) else until
    return schema.build(GenerateConfig, values, "gen_kwargs")
