"""One training step: a pure, jitted function of (state, batch, learning rate)."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from sparse_jax import mesh
from sparse_jax.ops import MaskMode
from sparse_jax.sparsity import adapters
from sparse_jax.sparsity import masks as masks_lib
from sparse_jax.sparsity.adapters import QuantTrainConfig
from sparse_jax.train.losses import Loss, LossSum, TopK
from sparse_jax.train.optimizer import OptimizerConfig
from sparse_jax.train.trainable import join, partition
from sparse_jax.types import Batch, Masks, Params, State, Tree

Metrics = Mapping[str, jax.Array]


def init_state(
    params: Params,
    masks: Masks,
    optimizer: OptimizerConfig,
    *,
    rng: jax.Array,
    data: int = 0,
    mode: MaskMode = "fixed",
) -> State:
    """A fresh state at step 0 with the masks applied to the parameters.

    It owns copies: training gives its buffers away, the caller keeps `params`.

    Args:
      params: weights, with factors of `sparsity.adapters` if there are any.
      masks: True = kept; `mode` says whether they are applied already.
      optimizer: AdamW's configuration; only what it trains has moments.
      rng: a JAX random key.
      data: the next batch of the data stream.
      mode: "fixed" sets pruned weights to zero; the others leave them.
    """
    if mode == "fixed":
        params = masks_lib.apply(params, masks)
    params = jax.tree.map(jnp.copy, params)
    masks = jax.tree.map(jnp.copy, masks)
    trained, _ = partition(params, optimizer.trainable)
    return State(
        step=jnp.int32(0),
        params=params,
        masks=masks,
        opt=optimizer.transformation().init(trained),
        rng=rng,
        data=jnp.int32(data),
        extra={},
    )


@functools.partial(
    jax.jit,
    static_argnames=("loss", "optimizer", "accumulate", "mask_mode", "quantize"),
    donate_argnames="state",
)
def train_step(
    state: State,
    batch: Batch,
    learning_rate: Float[Array, ""] | float,
    teacher: Tree = None,
    *,
    decay: Float[Array, ""] | float = 0.0,
    progress: Float[Array, ""] | float = 0.0,
    loss: Loss,
    optimizer: OptimizerConfig,
    accumulate: int = 1,
    mask_mode: MaskMode = "fixed",
    quantize: QuantTrainConfig | None = None,
) -> tuple[State, Metrics]:
    """Takes one optimizer step.

        w <- m * (w - lr * adamw(dL/dw)),   L on effective weights m * w

    for the leaves that `optimizer.trainable` names; the others have no gradient.

    The learning rate is an argument, so that stages with other schedules share one
    compilation; so do dense and masked stages, as long as both carry masks.

    Args:
      state: consumed; its buffers are reused. With fixed masks its pruned weights
        must be zero, as `init_state` and this function leave them.
      batch: [B, T] arrays, B a multiple of `accumulate`.
      learning_rate: of this step.
      teacher: handed to the loss: frozen weights, or what was kept of their logits.
      decay: of pruned weights at this step, see `train.pruned_decay`.
      progress: (step + 1) / steps, for that decay.
      loss: see `train.losses`.
      optimizer: AdamW's configuration.
      accumulate: micro-batches whose gradients are added up, one after the other.
      mask_mode: see `ops.effective_weight`.
      quantize: the grids of the kernels that have a `quant_scale` beside them.

    Returns:
      The next state and float32 scalars: `loss` (mean nats per weighted token),
      `grad_norm` (of what trains, before clipping) and the loss's own parts.
    """
    grads, sums = _gradients(
        *(state, batch, teacher, loss, optimizer.trainable, accumulate),
        functools.partial(effective, mode=mask_mode, quantize=quantize),
        fixed=mask_mode == "fixed",
    )
    pruned = {"decay": decay, "progress": progress}
    fixed = mask_mode == "fixed"
    new_state = _update(state, grads, learning_rate, optimizer, fixed, **pruned)
    parts = {name: value / sums.weight for name, value in sums.parts.items()}
    return mesh.constrain_tree(new_state), {
        "loss": sums.total / sums.weight,
        "grad_norm": optax.global_norm(grads),
        **parts,
    }


def effective(
    params: Params, masks: Masks, *, mode: MaskMode, quantize: QuantTrainConfig | None
) -> Params:
    """The plain weights that the model multiplies by, see `effective_params`."""
    if quantize is None:
        return adapters.effective_params(params, masks, mode=mode)
    return adapters.effective_params(
        params, masks, mode=mode, grid=quantize.grid, refit=quantize.refit
    )


def _gradients(state, batch, teacher, loss, trainable, accumulate, effective, *, fixed):
    """Of the mean loss with respect to what trains, and the sums of the loss."""
    per_token = isinstance(teacher, TopK)
    trained, frozen = partition(state.params, trainable)

    def loss_sum(trained: Params, piece) -> tuple[jax.Array, LossSum]:
        micro, logits = piece
        params = join(trained, frozen)
        # With fixed masks the stored weights are effective already: nothing to copy.
        if not fixed or adapters.split(params)[1]:
            params = effective(params, state.masks)
        result = loss(params, micro, logits if per_token else teacher)
        return result.total, result

    pieces = (batch, teacher if per_token else None)
    grads, sums = _accumulate(loss_sum, trained, pieces, accumulate)
    grads = jax.tree.map(lambda g: g / sums.weight, grads)
    if fixed:
        grads = masks_lib.apply(grads, partition(state.masks, trainable)[0])
    return grads, sums


def _update(state, grads, learning_rate, optimizer, fixed, **pruned):
    """The state after one AdamW step."""
    trained, frozen = partition(state.params, optimizer.trainable)
    masks, _ = partition(state.masks, optimizer.trainable)
    updates, opt = optimizer.transformation().update(
        grads, state.opt, trained, masks=masks, **pruned
    )
    updates = jax.tree.map(lambda u: -learning_rate * u, updates)
    trained: Any = optax.apply_updates(trained, updates)
    if fixed:
        # Gradients and moments are masked already; this makes it exact, whatever an
        # optimizer adds, and keeps the stored weights effective.
        trained = masks_lib.apply(trained, masks)
    params = join(trained, frozen)
    return dataclasses.replace(
        state, step=state.step + 1, data=state.data + 1, params=params, opt=opt
    )


def _accumulate(loss_sum, params, batch, accumulate):
    """Sums gradients and losses over `accumulate` micro-batches."""
    gradient = jax.grad(loss_sum, has_aux=True)
    if accumulate == 1:
        return gradient(params, batch)

    def micro_batches(x_BT):
        # Strided, so that every device keeps its own rows on a sharded batch axis.
        return jnp.moveaxis(x_BT.reshape(-1, accumulate, *x_BT.shape[1:]), 1, 0)

    def body(total, micro):
        return jax.tree.map(jnp.add, total, gradient(params, micro)), None

    micros = jax.tree.map(micro_batches, batch)
    shapes = jax.eval_shape(gradient, params, jax.tree.map(lambda x: x[0], micros))
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    return jax.lax.scan(body, zeros, micros)[0]
