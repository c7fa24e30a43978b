"""Loss of a model on the responses of held-out conversations."""

import functools
import math

import jax

from sparse_jax import mesh as mesh_lib
from sparse_jax.data import Examples
from sparse_jax.evaluate.perplexity import Evaluation, from_counts, round_up
from sparse_jax.models import Compute, LlamaConfig
from sparse_jax.train import NextToken
from sparse_jax.train.losses import LossSum
from sparse_jax.types import Batch, InputError, Params


def evaluate_responses(
    params: Params,
    config: LlamaConfig,
    examples: Examples,
    *,
    window: int,
    batch_size: int = 16,
    compute: Compute = Compute(),
    data: str = "",
    split: str = "",
    tokenizer: str = "",
) -> Evaluation:
    """Loss per response token, every example by itself.

        loss = sum of -log p(token | its example before it) / tokens

    over the tokens of all responses.

    The end-of-sequence token counts as a token of no bytes. The examples stand together
    in rows, but do not see each other: the window changes nothing but which examples
    are too long for it.

    Args:
      params: float32 parameters, masks applied.
      config: architecture.
      examples: held-out ones.
      window: tokens of a row.
      batch_size: rows per call of the model; on a mesh rounded up as in `evaluate`.
      compute: dtype and scan options.
      data: name of the data; this and the next two are copied into the result.
      split: part of the data.
      tokenizer: name of the tokenizer.

    Raises:
      InputError: no example fits into a row, the window is longer than the model
        allows, or the loss is NaN or infinite.
    """
    config.check_length(window)
    if not examples.num_rows(window):
        raise InputError(
            f"{data}: none of the {len(examples.lengths)} held-out examples fits into "
            f"a row of {window} tokens; raise evaluate.window"
        )
    mesh = mesh_lib.current()
    if mesh.size > 1:
        params = jax.device_put(params, mesh_lib.shardings(mesh, params))
    loss = NextToken(model=config, compute=compute, isolate_documents=True)
    size = round_up(batch_size, mesh_lib.batch_shards())
    totals, tokens, nbytes = [], 0, 0
    for batch, written in examples.batches(size, window):
        placed = Batch(*(mesh_lib.place_rows(mesh, array) for array in batch))
        totals.append(float(_loss_sum(params, placed, loss=loss).total))
        tokens += int(batch.loss_weights.sum())
        nbytes += written
    source = {"data": data, "split": split, "tokenizer": tokenizer}
    return from_counts(math.fsum(totals), tokens, nbytes, window, source)


@functools.partial(jax.jit, static_argnames="loss")
def _loss_sum(params: Params, batch: Batch, *, loss: NextToken) -> LossSum:
    return loss(params, batch)
