"""The same numbers as `perplexity`, of a model whose blocks are read one at a time.

Neither the decoder blocks nor the head are ever whole in memory: the text goes through
block after block, and the head comes in panels of vocabulary rows, over which the
log-sum-exp of the logits runs on:

    loss_t = log sum_v exp(x_t . head_v) - x_t . head_target
"""

import functools
import math
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from sparse_jax import mesh as mesh_lib
from sparse_jax import prune
from sparse_jax.evaluate.perplexity import (
    EvaluateConfig,
    Evaluation,
    batches,
    cut_windows,
    evaluation,
    round_up,
)
from sparse_jax.models import Compute
from sparse_jax.models.layers import rms_norm
from sparse_jax.prune import Activations, Progress, walk

# Tokens whose activations exist at one time; the model is read once for so many, which
# takes no time beside computing on them.
_PIECE = 65_536
# Logits that exist at one time.
_LOGITS = 2**24


@runtime_checkable
class Blocks(prune.Blocks, Protocol):
    """Blocks, and what comes after the last of them."""

    def leaf(self, path: str) -> Array:
        """A leaf that is not stacked, such as "final_norm/scale"."""
        ...

    def rows(self, path: str, start: int, stop: int) -> Float[np.ndarray, "_ D"]:
        """Rows of "embed/embedding" or "lm_head/kernel", stored as [V, D]."""
        ...


def evaluate_blocks(
    blocks: Blocks,
    ids: Int[np.ndarray, " n"],
    nbytes: Int[np.ndarray, " n"],
    *,
    window: int = 256,
    batch_size: int = 16,
    compute: Compute = Compute(),
    data: str = "",
    split: str = "",
    tokenizer: str = "",
    progress: Progress | None = None,
) -> Evaluation:
    """Evaluates a model block by block, in memory that does not grow with the text.

    The text goes through the whole model in pieces of some 65 thousand tokens, for each
    of which every block is read once.

    Args:
      blocks: the model.
      ids: the stream's token ids; this and what follows as for `evaluate`, which gives
        the same numbers.
      nbytes: UTF-8 bytes that each token stands for.
      window: N, tokens per window.
      batch_size: windows per call of a block.
      compute: dtype.
      data: name of the text.
      split: part of the text.
      tokenizer: name of the tokenizer.
      progress: called as (done, total), in blocks times pieces of the text.

    Raises:
      InputError: as `evaluate`.
    """
    settings = EvaluateConfig(window=window, batch_size=batch_size)
    ids_WN, nbytes_WN = cut_windows(blocks.config, ids, nbytes, window, data)
    batch_size = round_up(settings.batch_size, mesh_lib.batch_shards())
    step = max(1, _PIECE // (window * batch_size)) * batch_size
    depth = blocks.config.n_layers
    starts = range(0, len(ids_WN), step)
    sums = []
    for number, start in enumerate(starts):

        def advance(done: int, _: int, before: int = number * depth) -> None:
            if progress is not None:
                progress(before + done, len(starts) * depth)

        piece_WN = ids_WN[start : start + step]
        sums += _losses(blocks, piece_WN, batch_size, compute, advance)
    source = {"data": data, "split": split, "tokenizer": tokenizer}
    return evaluation(math.fsum(sums), nbytes_WN, source)


def _losses(blocks, ids_WN, batch_size, compute, progress) -> list[float]:
    """The summed loss of every batch of windows."""
    parts = list(batches(ids_WN, batch_size))
    tokens_WN = np.concatenate([tokens_BN for tokens_BN, _, _ in parts])
    options = {"batch_size": batch_size, "progress": progress}
    outputs = walk(blocks, tokens_WN, compute, None, **options)
    scale_D = blocks.leaf("final_norm/scale")
    outputs.update(lambda x_BTD: _norm(x_BTD, scale_D, blocks.config.norm_eps))
    targets = [targets_BT for _, targets_BT, _ in parts]
    losses = _head_losses(blocks, outputs, targets)
    return [
        float(np.sum(np.asarray(loss_BT, np.float64) * weights_BT))
        for loss_BT, (_, _, weights_BT) in zip(losses, parts, strict=True)
    ]


def _head_losses(
    blocks: Blocks, outputs: Activations, targets: list[np.ndarray]
) -> list[Float[Array, "B T"]]:
    """The loss of every token, with one panel of the head in memory at a time."""
    path = "embed/embedding" if blocks.config.tie_embeddings else "lm_head/kernel"
    vocab_size = blocks.config.vocab_size
    height = min(vocab_size, max(256, _LOGITS // targets[0].size))
    states = [_start(targets_BT.shape) for targets_BT in targets]
    for start in range(0, vocab_size, height):
        rows_PD = blocks.rows(path, start, min(start + height, vocab_size))
        count = len(rows_PD)
        panel_PD = jnp.asarray(np.pad(rows_PD, ((0, height - count), (0, 0))))
        states = [
            _add_panel(state, x_BTD, panel_PD, targets_BT, start, count)
            for state, x_BTD, targets_BT in zip(states, outputs, targets, strict=True)
        ]
    return [top_BT + jnp.log(sum_BT) - gold_BT for top_BT, sum_BT, gold_BT in states]


def _start(shape: tuple[int, int]):
    """(largest logit, sum of exp(logit - largest), the target's logit) of no rows."""
    return jnp.full(shape, -jnp.inf), jnp.zeros(shape), jnp.zeros(shape)


@jax.jit
def _add_panel(state, x_BTD, panel_PD, targets_BT, start, count):
    """Goes on over the head's rows start .. start + count; the panel's others are 0."""
    top_BT, sum_BT, gold_BT = state
    logits_BTP = jnp.einsum(
        "btd,pd->btp",
        x_BTD,
        panel_PD.astype(x_BTD.dtype),
        preferred_element_type=jnp.float32,
    )
    row_P = jnp.arange(panel_PD.shape[0])
    logits_BTP = jnp.where(row_P < count, logits_BTP, -jnp.inf)
    new_top_BT = jnp.maximum(top_BT, logits_BTP.max(-1))
    exp_BTP = jnp.exp(logits_BTP - new_top_BT[..., None])
    sum_BT = sum_BT * jnp.exp(top_BT - new_top_BT) + exp_BTP.sum(-1)
    hit_BTP = row_P == targets_BT[..., None] - start
    gold_BT += jnp.where(hit_BTP, logits_BTP, 0).sum(-1)
    return new_top_BT, sum_BT, gold_BT


@functools.partial(jax.jit, static_argnames="eps")
def _norm(x_BTD, scale_D, eps):
    return rms_norm(x_BTD, scale_D, eps)
