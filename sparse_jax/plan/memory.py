"""Memory of a device by part: exact for what a step holds, estimated for the rest.

The estimate adds up what is alive at the worst moment of a step: gradients of what
trains, a copy of the weights in the compute dtype, what the forward pass keeps for the
backward one, with the block outputs of both models where they are compared, and the
largest of three working sets (a block, the loss, the embedding). Kernels with adapters
beside them have gradients, too, until those of the factors are formed at the end of the
backward pass. `docs/plan.md` compares it with what XLA needs.
"""

import dataclasses
import math
from typing import Any

import jax.numpy as jnp

from sparse_jax import mesh as mesh_lib
from sparse_jax import tree
from sparse_jax.plan.job import (
    Job,
    abstract_state,
    batch_bytes,
    device_bytes,
    teacher_bytes,
)
from sparse_jax.sparsity import adapters
from sparse_jax.train.trainable import partition
from sparse_jax.types import Params

_LEARNING_RATE = 4
"""An argument of the step, one float32."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes of one device.

    Attributes:
      params: float32 master weights.
      masks: one byte a weight.
      moments: of the optimizer.
      batch: tokens and counters.
      teacher: frozen weights, or what is kept of their logits.
      gradients: of the weights that train.
      activations: what the forward pass keeps for the backward one, and the features
        that a loss compares.
      working: the rest: weights in the compute dtype, gathered weights, and what a
        block, the loss or the embedding needs while it is computed.
      compiled: whether XLA gave the sum of the last three, its temporaries.
    """

    params: int
    masks: int
    moments: int
    batch: int
    teacher: int
    gradients: int
    activations: int
    working: int
    compiled: bool = False

    @property
    def arguments(self) -> int:
        """What the step holds from beginning to end."""
        held = self.params + self.masks + self.moments
        return held + self.batch + self.teacher

    @property
    def temporaries(self) -> int:
        """What it needs besides."""
        return self.gradients + self.activations + self.working

    @property
    def total(self) -> int:
        """The most at any moment."""
        return self.arguments + self.temporaries

    def with_temporaries(self, found: int) -> "Memory":
        """The same with XLA's temporaries in place of the estimated ones.

        XLA does not say what they are: gradients and activations stay as estimated, as
        far as there is room for them.
        """
        gradients = min(self.gradients, found)
        activations = min(self.activations, found - gradients)
        return dataclasses.replace(
            self,
            gradients=gradients,
            activations=activations,
            working=found - gradients - activations,
            compiled=True,
        )


def estimate(job: Job, granule: int = 1) -> Memory:
    """The memory of a step by arithmetic alone.

    Args:
      job: the step.
      granule: of the chip, see `Chip`.
    """
    mesh, state = mesh_lib.abstract_mesh(job.mesh), abstract_state(job)
    counters = (state.step, state.rng, state.data)
    params = device_bytes(state.params, mesh, granule)
    counted = device_bytes(counters, mesh, granule) + max(_LEARNING_RATE, granule)
    trained, _ = partition(state.params, job.optimizer.trainable)
    # With micro-batches, those of the present one stand beside the sum.
    gradients = device_bytes(trained, mesh, granule) * (2 if job.accumulate > 1 else 1)
    adapted = device_bytes(_adapted(job, state.params), mesh, granule)
    copy = params * _itemsize(job) // 4 if _itemsize(job) < 4 else 0
    return Memory(
        params=params,
        masks=device_bytes(state.masks, mesh, granule),
        moments=device_bytes(state.opt, mesh, granule),
        batch=batch_bytes(job, mesh, granule) + counted,
        teacher=teacher_bytes(job, mesh, granule),
        gradients=gradients,
        activations=_kept(job) + _features(job),
        working=copy + max(_block(job) + adapted, _loss(job), _embedding(job)),
    )


def _adapted(job: Job, params: Params) -> dict[str, Any]:
    """The kernels with adapters beside them, by path."""
    if job.lora is None:
        return {}
    matrices = job.lora.matrices(adapters.split(params)[0])
    return {f"{node}/kernel": leaf for node, leaf in matrices.items()}


def _itemsize(job: Job) -> int:
    return jnp.dtype(job.compute.jax_dtype).itemsize


def _widths(job: Job) -> tuple[int, int, int, int]:
    """D, F, and the heads' widths of queries and of keys on one device."""
    c, tensor = job.model, job.mesh.tensor
    query, key = c.n_heads * c.head_width, c.kv_heads * c.head_width
    return c.d_model, c.d_ff // tensor, query // tensor, key // tensor


def _scores(job: Job) -> int:
    """Attention scores of a block on one device; none where they are never stored."""
    if job.compute.attention != "scores":
        return 0
    heads = job.model.n_heads // job.mesh.tensor
    return job.rows * heads * job.seq_len**2


def _kept(job: Job) -> int:
    """What the forward pass keeps of all blocks, by `Compute.remat`."""
    width, hidden, query, key = _widths(job)
    tokens = job.rows * job.seq_len
    per_token = width  # the input of the block
    if job.compute.remat != "block":
        per_token += 2 * width + 2 * hidden + query + 2 * key  # results of products
    bytes_ = tokens * per_token * _itemsize(job)
    if job.compute.remat == "none":
        # Two norms, RoPE, the context, three steps of the gated unit, and the scores'
        # softmax in both precisions.
        more = 4 * width + 2 * query + key + 3 * hidden
        bytes_ += tokens * more * _itemsize(job)
        bytes_ += _scores(job) * (4 + _itemsize(job))
    return job.model.n_layers * bytes_


def _features(job: Job) -> int:
    """The outputs of both models' blocks, where the loss compares them."""
    if not job.keeps_features:
        return 0
    c = job.model
    return 2 * c.n_layers * job.rows * job.seq_len * c.d_model * _itemsize(job)


def _block(job: Job) -> int:
    """The backward pass of one block: its gathered weights and activations."""
    width, hidden, query, key = _widths(job)
    weights = 2 * width * query + 2 * width * key + 3 * width * hidden
    tokens, size = job.rows * job.seq_len, _itemsize(job)
    # Of the weights: these and the next ones, and gradients before they are summed.
    gathered = 3 * weights * size
    activations = tokens * size * (6 * width + 5 * hidden + 4 * query + 4 * key)
    attention = tokens * 4 * 4 * query
    return gathered + activations + attention + _scores(job) * (4 + 4)


def _loss(job: Job) -> int:
    """Logits of a piece, the head and its gradient."""
    c = job.model
    vocabulary = c.vocab_size // job.mesh.tensor
    piece = max(job.compute.loss_chunk // job.rows, 1) * job.rows
    tokens = min(piece, job.rows * job.seq_len)
    logits = tokens * vocabulary * (4 + 4 + _itemsize(job))
    head = c.d_model * vocabulary * (4 + 4 + _itemsize(job))
    return logits + head


def _embedding(job: Job) -> int:
    """The gathered table and its gradient."""
    c = job.model
    return c.vocab_size // job.mesh.tensor * c.d_model * (4 + _itemsize(job))


def weights(job: Job) -> int:
    """Number of a model's weights, embedding included."""
    state = abstract_state(job)
    return sum(math.prod(leaf.shape) for leaf in tree.leaf_paths(state.params).values())
