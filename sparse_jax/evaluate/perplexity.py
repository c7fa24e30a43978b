"""Loss, perplexity and bits per byte of a model on one stream of text.

The stream is encoded without special tokens and cut into non-overlapping windows of N
tokens, each predicting its last N - 1; a ragged tail is dropped:

    loss          = sum_i -log p(x_i | window before x_i) / tokens    [nats / token]
    perplexity    = exp(loss)
    bits_per_byte = loss * tokens / (ln 2 * bytes)

where the sum, `tokens` and `bytes` run over the predicted tokens. Perplexities over
different windows or tokenizers do not compare; bits per byte compare over tokenizers.
"""

import dataclasses
import functools
import math
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float, Int

from sparse_jax import mesh as mesh_lib
from sparse_jax import models
from sparse_jax.models import Compute, LlamaConfig
from sparse_jax.types import InputError, Params


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """How held-out text is evaluated.

    Attributes:
      window: N, tokens per window; each predicts N - 1 of them.
      batch_size: windows per call of the model; changes speed and memory only.
    """

    window: int = 256
    batch_size: int = 16

    def __post_init__(self):
        for name, least in (("window", 2), ("batch_size", 1)):
            if getattr(self, name) < least:
                raise InputError(
                    f"evaluate.{name} must be >= {least}, got {getattr(self, name)}"
                )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluation:
    """A model's numbers on one stream, with what is needed to repeat them.

    Attributes:
      loss: nats per predicted token.
      perplexity: exp(loss); infinite where that overflows a float.
      bits_per_byte: bits per UTF-8 byte of the predicted tokens.
      tokens: tokens predicted.
      bytes: their UTF-8 bytes.
      window: tokens per window.
      stride: tokens from one window to the next; equal to `window`, no overlap.
      data: name or path of the text.
      split: the part of it, e.g. "heldout".
      tokenizer: fingerprint or name of the tokenizer.
    """

    loss: float
    perplexity: float
    bits_per_byte: float
    tokens: int
    bytes: int
    window: int
    stride: int
    data: str
    split: str
    tokenizer: str

    def numbers(self) -> dict[str, Any]:
        """The fields as JSON data, which has no infinity: that perplexity is None."""
        fields = dataclasses.asdict(self)
        return fields | ({"perplexity": None} if math.isinf(self.perplexity) else {})


def evaluate(
    params: Params,
    config: LlamaConfig,
    ids: Int[np.ndarray, " n"],
    nbytes: Int[np.ndarray, " n"],
    *,
    window: int = 256,
    batch_size: int = 16,
    compute: Compute = Compute(),
    data: str = "",
    split: str = "",
    tokenizer: str = "",
) -> Evaluation:
    """Evaluates a model on one stream of tokens, as this module's header defines it.

    Compiles once per (architecture, window, batch size): every model of the same shape
    reuses the program. Batches are summed in float64. On the mesh that is set, batches
    are cut over its axes data and fsdp; all its processes call this, and get the same.

    Args:
      params: float32 parameters, masks applied.
      config: architecture.
      ids: the stream's token ids, no special tokens.
      nbytes: UTF-8 bytes that each token stands for.
      window: N, tokens per window.
      batch_size: windows per call of the model; on a mesh it is rounded up to what the
        batch axes divide.
      compute: dtype and scan options.
      data: name of the text; this and the next two are copied into the result.
      split: part of the text.
      tokenizer: name of the tokenizer.

    Raises:
      InputError: the stream is shorter than one window, the window is longer than the
        model allows, or a token id is outside the vocabulary.
        Also when the loss is NaN or infinite.

    Example:
      >>> from sparse_jax.models import sizes
      >>> config = sizes.get("tiny")
      >>> params = models.init(jax.random.key(0), config)
      >>> ids = np.arange(100, dtype=np.int32)
      >>> evaluate(params, config, ids, np.ones_like(ids), window=32).tokens
      93
    """
    settings = EvaluateConfig(window=window, batch_size=batch_size)
    ids_WN, nbytes_WN = cut_windows(config, ids, nbytes, window, data)
    mesh = mesh_lib.current()
    if mesh.size > 1:
        params = jax.device_put(params, mesh_lib.shardings(mesh, params))
    size = round_up(settings.batch_size, mesh_lib.batch_shards())
    sums = []
    for batch in batches(ids_WN, size):
        placed = (mesh_lib.place_rows(mesh, array_BN) for array_BN in batch)
        sums.append(float(_loss_sum(params, *placed, config=config, compute=compute)))
    total = math.fsum(sums)
    source = {"data": data, "split": split, "tokenizer": tokenizer}
    return evaluation(total, nbytes_WN, source)


def evaluation(
    total: float, nbytes_WN: Int[np.ndarray, "W N"], source: dict[str, str]
) -> Evaluation:
    """The numbers that follow from the summed loss, in nats, of all predictions.

    Args:
      total: the sum.
      nbytes_WN: bytes of every token of every window.
      source: `data`, `split` and `tokenizer` of the result.

    Raises:
      InputError: the sum is NaN or infinite.
    """
    windows, window = nbytes_WN.shape
    total_bytes = int(nbytes_WN[:, 1:].sum(dtype=np.int64))
    return from_counts(total, windows * (window - 1), total_bytes, window, source)


def from_counts(
    total: float, tokens: int, nbytes: int, window: int, source: dict[str, str]
) -> Evaluation:
    """The numbers of a summed loss over so many predicted tokens, and their bytes.

    Raises:
      InputError: the sum is NaN or infinite.
    """
    if not math.isfinite(total):
        raise InputError(
            f"{source['data'] or 'evaluation'}: the loss is {total}; the weights hold "
            "NaN or overflow, so use an earlier checkpoint or a wider dtype"
        )
    loss = total / tokens
    return Evaluation(
        loss=loss,
        perplexity=math.exp(loss) if loss < 700 else math.inf,
        bits_per_byte=total / (math.log(2) * nbytes),
        tokens=tokens,
        bytes=nbytes,
        window=window,
        stride=window,
        **source,
    )


def cut_windows(
    config: LlamaConfig,
    ids: Int[np.ndarray, " n"],
    nbytes: Int[np.ndarray, " n"],
    window: int,
    data: str,
) -> tuple[Int[np.ndarray, "W N"], Int[np.ndarray, "W N"]]:
    """Cuts a stream, and its bytes per token, into windows, and drops the tail.

    Raises:
      InputError: see `evaluate`; `data` names the stream.
    """
    name = data or "the evaluation text"
    config.check_length(window)
    if len(ids) < window:
        raise InputError(
            f"{name}: {len(ids)} tokens are fewer than one window of {window}; "
            "use a longer text or a smaller window"
        )
    lowest, highest = int(ids.min()), int(ids.max())
    if lowest < 0 or highest >= config.vocab_size:
        raise InputError(
            f"{name}: token id {highest if lowest >= 0 else lowest} is outside the "
            f"model's vocabulary of {config.vocab_size}; "
            "use the tokenizer the model was trained with"
        )
    kept = len(ids) // window * window
    nbytes_WN = nbytes[:kept].reshape(-1, window)
    if not nbytes_WN[:, 1:].any():
        raise InputError(f"{name}: its tokens stand for no text; choose another text")
    return ids[:kept].reshape(-1, window).astype(np.int32), nbytes_WN


def round_up(count: int, step: int) -> int:
    """The next multiple of `step`, from `count` on."""
    return -(-count // step) * step


def batches(
    ids_WN: Int[np.ndarray, "W N"], batch_size: int
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Yields (tokens, targets, weights) [B, N], the last batch filled with weight 0.

    All N tokens enter the model, although the last predicts nothing: dynamic RoPE
    depends on the length, and N is rounder than N - 1.
    """
    for start in range(0, len(ids_WN), batch_size):
        part_WN = ids_WN[start : start + batch_size]
        tokens_BN = np.zeros((batch_size, ids_WN.shape[1]), np.int32)
        tokens_BN[: len(part_WN)] = part_WN
        weights_BN = np.zeros(tokens_BN.shape, np.float32)
        weights_BN[: len(part_WN), :-1] = 1.0
        yield tokens_BN, np.roll(tokens_BN, -1, axis=1), weights_BN


@functools.partial(jax.jit, static_argnames=("config", "compute"))
def _loss_sum(
    params: Params,
    tokens_BT: Int[Array, "B T"],
    targets_BT: Int[Array, "B T"],
    weights_BT: Float[Array, "B T"],
    *,
    config: LlamaConfig,
    compute: Compute,
) -> Float[Array, ""]:
    x_BTD = models.hidden(params, tokens_BT, config, compute)
    head_DV = models.head(params, x_BTD.dtype)
    chunk = compute.loss_chunk
    return models.cross_entropy(x_BTD, head_DV, targets_BT, weights_BT, chunk)
