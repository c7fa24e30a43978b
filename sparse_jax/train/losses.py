"""Training losses: hashable callables of (params, batch, teacher).

A loss receives effective weights (masks already applied), so it never sees masks. It
returns sums, not means: sums over micro-batches and devices add up exactly.
"""

import dataclasses
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from sparse_jax import models
from sparse_jax.types import Batch, Params


class LossSum(NamedTuple):
    """A weighted sum of per-token losses.

    Attributes:
      total: float32 scalar, sum of weight x loss; the quantity differentiated.
      weight: float32 scalar, sum of the weights; total / weight is the mean loss.
      parts: named sums to report, each divided by `weight` like the total.
    """

    total: Float[Array, ""]
    weight: Float[Array, ""]
    parts: dict[str, jax.Array]


class TopK(NamedTuple):
    """What is kept of a teacher's distribution of the next token.

    Attributes:
      ids: int32, the k most probable tokens.
      log_probs: float16, of them at the temperature of the loss; the rest of the
        probability lies on all other tokens together.
    """

    ids: Int[Array, "B T k"]
    log_probs: Float[Array, "B T k"]


@runtime_checkable
class Loss(Protocol):
    """The loss seam of a training step; implementations are frozen dataclasses."""

    def __call__(
        self, params: Params, batch: Batch, teacher: Params | TopK | None
    ) -> LossSum:
        """Loss of `params` on `batch`; `teacher` holds frozen weights, or is None."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class NextToken:
    """Cross-entropy of the next token; a teacher is ignored.

    Attributes:
      model: architecture.
      compute: dtype, remat and chunk sizes.
      isolate_documents: attention stays inside a document of a packed row.
    """

    model: models.LlamaConfig
    compute: models.Compute = models.Compute()
    isolate_documents: bool = False

    def __call__(
        self, params: Params, batch: Batch, teacher: Params | TopK | None = None
    ) -> LossSum:
        """See `Loss`."""
        del teacher
        x_BTD = hidden_states(
            params, batch, self.model, self.compute, self.isolate_documents
        )
        total = models.cross_entropy(
            x_BTD,
            models.head(params, x_BTD.dtype),
            batch.targets,
            batch.loss_weights,
            self.compute.loss_chunk,
        )
        return LossSum(total, batch.loss_weights.sum(), {})


def hidden_states(
    params: Params,
    batch: Batch,
    model: models.LlamaConfig,
    compute: models.Compute,
    isolate_documents: bool,
) -> Float[Array, "B T D"]:
    """What the head of a model sees of a batch; arguments as of `NextToken`."""
    context = token_context(batch, isolate_documents)
    return models.hidden(params, jnp.asarray(batch.tokens), model, compute, **context)


def token_context(batch: Batch, isolate_documents: bool) -> dict[str, Any]:
    """Positions and documents of a batch, as keywords of `models.hidden`."""
    segment_ids = jnp.asarray(batch.segment_ids) if isolate_documents else None
    return {"positions": jnp.asarray(batch.positions), "segment_ids": segment_ids}
