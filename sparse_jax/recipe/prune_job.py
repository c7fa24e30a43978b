"""What one run of `launch/prune.py` does, and the texts that it reads for it."""

import dataclasses
import hashlib
import os
from typing import Any, Literal

import numpy as np
from jaxtyping import Int

from sparse_jax import io, prune
from sparse_jax.data import Tokenizer, find_shards, load_tokenizer, stream_from_path
from sparse_jax.evaluate import EvaluateConfig, cut_windows
from sparse_jax.mesh import MeshConfig
from sparse_jax.models import Compute, LlamaConfig
from sparse_jax.prune import PruneConfig
from sparse_jax.schema import to_dict
from sparse_jax.types import InputError

_LENGTH = 2048
"""Longest calibration sequence and evaluation window that is chosen by itself."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PruneJob(PruneConfig):
    """One-shot pruning of a checkpoint: `PruneConfig`, its texts, and what is written.

    Attributes:
      sample_length: tokens of a calibration sequence; None = 2048, or as many as the
        model allows.
      calibration: training text: a file, glob or directory, `tfds:NAME`, or the
        training part of `embedded:code` or `embedded:prose`. None: no calibration,
        which only magnitude can do without.
      calibration_field: field of JSON lines, Parquet or TFDS with the text.
      calibration_limit: bytes of text read, at most; sequences are drawn from these.
      evaluate: texts to evaluate the model on before and after; of the embedded corpus
        the held-out part.
      evaluate_field: as `calibration_field`.
      evaluate_limit: bytes read of each, at most; None = all.
      evaluate_window: tokens per window; None = 2048, or as many as the model allows.
      tokenizer: path of the tokenizer; None = the model's own.
      dtype: of the stored weights; None = as the model's are stored.
      spool: folder for the activations of large calibrations; None = memory.
      compute: the activations' dtype.
      mesh: devices; the rows of every matrix are solved over all of them.
    """

    sample_length: int | None = None  # pyrefly: ignore[bad-override]
    calibration: str | None = None
    calibration_field: str = "text"
    calibration_limit: int = 8_000_000
    evaluate: tuple[str, ...] = ()
    evaluate_field: str = "text"
    evaluate_limit: int | None = 8_000_000
    evaluate_window: int | None = None
    tokenizer: str | None = None
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    spool: str | None = None
    compute: Compute = Compute()
    mesh: MeshConfig = MeshConfig()

    def __post_init__(self):
        super().__post_init__()
        for name in ("calibration_limit", "evaluate_limit"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"{name} must be at least 1, found {value}")

    def prune_config(self, model: LlamaConfig) -> PruneConfig:
        """The pruning alone, with the sequence length that fits the model."""
        names = [field.name for field in dataclasses.fields(PruneConfig)]
        fields = {name: getattr(self, name) for name in names}
        if self.sample_length is None:
            fields["sample_length"] = min(_LENGTH, model.max_seq_len)
        return PruneConfig(**fields)

    def evaluate_config(self, model: LlamaConfig) -> EvaluateConfig:
        """The windows of the evaluation, some 4096 tokens at a time."""
        window = self.evaluate_window
        if window is None:
            window = min(_LENGTH, model.max_seq_len)
        batch_size = max(1, 2 * _LENGTH // max(1, window))
        return EvaluateConfig(window=window, batch_size=batch_size)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Text:
    """An evaluation text.

    Attributes:
      ids: its tokens.
      nbytes: UTF-8 bytes that each stands for.
      options: of `evaluate_blocks`: windows, and what the text is.
    """

    ids: Int[np.ndarray, " n"]
    nbytes: Int[np.ndarray, " n"]
    options: dict[str, Any]

    @property
    def key(self) -> dict[str, Any]:
        """What a kept evaluation must be of."""
        return {**self.options, "sha256": _sha256(self.ids)}


def check_apart(job: PruneJob) -> None:
    """Raises InputError when text is both calibrated and evaluated on."""
    if job.calibration is None:
        return
    files = {
        os.path.realpath(shard.path): shard
        for shard in find_shards(job.calibration, field=job.calibration_field)
    }
    for path in job.evaluate:
        for shard in find_shards(path, field=job.evaluate_field):
            # The embedded corpus holds its evaluation text out by itself.
            if os.path.realpath(shard.path) in files and shard.format != "embedded":
                raise InputError(
                    f"{shard.path} is calibration text and in evaluate too: keep the "
                    "two apart"
                )


def _tokenizer(job: PruneJob, reader: io.BlockReader) -> Tokenizer:
    if job.tokenizer is not None:
        tokenizer = load_tokenizer(job.tokenizer)
        io.check_tokenizer(tokenizer, reader.config, job.tokenizer)
        return tokenizer
    if reader.tokenizer is None:
        raise InputError(
            f"{reader.directory}: holds no tokenizer, which calibration and evaluation "
            "text need: set tokenizer to a tokenizer.json, a *.model or a directory"
        )
    return reader.tokenizer


def read_calibration(
    job: PruneJob, config: PruneConfig, reader: io.BlockReader
) -> tuple[Int[np.ndarray, "samples length"] | None, dict[str, Any] | None]:
    """The calibration sequences, and what the report says of them."""
    if job.calibration is None:
        return None, None
    ids, nbytes = stream_from_path(
        job.calibration,
        _tokenizer(job, reader),
        field=job.calibration_field,
        split="train",
        limit=job.calibration_limit,
    )
    tokens = prune.sample_windows(
        ids, config.samples, config.sample_length, config.seed
    )
    return tokens, {
        "text": job.calibration,
        "split": _split(job.calibration, "train"),
        "field": job.calibration_field,
        "bytes_read": int(nbytes.sum()),
        "tokens_read": len(ids),
        "sequences": config.samples,
        "length": config.sample_length,
        "seed": config.seed,
        "sha256": _sha256(tokens),
    }


def read_texts(job: PruneJob, reader: io.BlockReader) -> list[Text]:
    """The evaluation texts, checked against the model."""
    settings = job.evaluate_config(reader.config)
    texts = []
    for path in job.evaluate:
        tokenizer = _tokenizer(job, reader)
        ids, nbytes = stream_from_path(
            path, tokenizer, field=job.evaluate_field, limit=job.evaluate_limit
        )
        cut_windows(reader.config, ids, nbytes, settings.window, path)
        options = to_dict(settings) | {
            "data": path,
            "split": _split(path, "heldout"),
            "tokenizer": tokenizer.fingerprint,
        }
        texts.append(Text(ids=ids, nbytes=nbytes, options=options))
    return texts


def _split(path: str, embedded: str) -> str:
    return embedded if path.startswith("embedded:") else "all"


def _sha256(ids: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(ids, "<i4").tobytes()).hexdigest()
