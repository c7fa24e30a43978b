"""A model on disk as tasks see it: what scores texts, and what continues them."""

import functools
from collections.abc import Sequence
from pathlib import Path

from sparse_jax import infer, io
from sparse_jax.data.tokenizer import Tokenizer
from sparse_jax.evaluate.encoding import Encoder
from sparse_jax.evaluate.generation import GenerateConfig, Generated, Generator
from sparse_jax.evaluate.rows import checked_length
from sparse_jax.evaluate.scoring import Score, Scorer
from sparse_jax.io.packed_layout import is_packed
from sparse_jax.models import Compute, sizes
from sparse_jax.types import InputError


class LanguageModel:
    """Scores and continues texts; loads what is needed for either when first asked.

    A packed file is scored with its weights unpacked, which are exactly what its
    storage types stand for, and activations that are not rounded; texts are continued
    by the engine, on the packed weights.

    Attributes:
      path: what was named.
      config: architecture.
      tokenizer: the model's own.
      source: in words, what the model is.
      encoder: how texts become tokens.
      max_length: the most tokens that it reads at a time.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        max_length: int | None = None,
        batch_size: int = 16,
        compute: Compute = Compute(),
        add_bos_token: bool | None = None,
    ):
        """Finds a model.

        Args:
          path: a Hugging Face, run or stage directory, or a packed file.
          max_length: tokens that are read at a time; None = `config.max_seq_len`.
          batch_size: texts that are worked on at a time.
          compute: how texts are scored.
          add_bos_token: see `Encoder`.

        Raises:
          InputError: no model there, or a damaged one; one without weights or without
            a tokenizer; a setting out of range.
        """
        if str(path) in sizes.SIZES and not Path(path).exists():
            raise InputError(f"{path} is a size without weights; name a model on disk")
        found = (
            infer.load_model(path)
            if is_packed(Path(path))
            else io.open_blocks(path, merge=True)
        )
        if found.tokenizer is None:
            raise InputError(
                f"{path}: the model has no tokenizer; put one (tokenizer.json or "
                "tokenizer.model) into its directory"
            )
        self.path, self.config, self.source = path, found.config, found.source
        self.tokenizer: Tokenizer = found.tokenizer
        self.encoder = Encoder(found.tokenizer, add_bos_token)
        self.max_length = checked_length(found.config, max_length)
        self._options = {
            "max_length": max_length,
            "batch_size": batch_size,
            "add_bos_token": add_bos_token,
        }
        self._compute = compute

    def loglikelihood(self, requests: Sequence[tuple[str, str]]) -> list[Score]:
        """See `Scorer.loglikelihood`."""
        return self._scorer.loglikelihood(requests)

    def rolling(self, texts: Sequence[str]) -> list[Score]:
        """See `Scorer.rolling`."""
        return self._scorer.rolling(texts)

    def generate(
        self, prompts: Sequence[str], config: GenerateConfig = GenerateConfig()
    ) -> list[Generated]:
        """See `Generator.generate`."""
        return self._generator.generate(prompts, config)

    @functools.cached_property
    def _scorer(self) -> Scorer:
        params = io.resolve(self.path).effective_params
        assert params is not None  # a size was refused
        return Scorer(
            params, self.config, self.tokenizer, compute=self._compute, **self._options
        )

    @functools.cached_property
    def _generator(self) -> Generator:
        return Generator(infer.Engine.load(self.path), **self._options)
