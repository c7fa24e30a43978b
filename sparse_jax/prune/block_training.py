"""Training one decoder block to compute what its dense original did.

GQSA's first stage (block quantisation-and-pruning optimisation): with x the activations
through the NEW blocks before it, z those of the dense model, and q the rounding to the
grids that train along,

    minimise over W, scales and zero points   sum |f(m * q(W), x) - t|^2 / sum |t|^2,
    t = f(W_dense, z)

so that a block makes up for the errors of those before it. One block, its moments and
its gradients are in memory at a time.

Source: GQSA, https://arxiv.org/abs/2412.17560; EfficientQAT's Block-AP,
https://arxiv.org/abs/2407.11062
"""

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from sparse_jax.models import LlamaConfig, block
from sparse_jax.ops import effective_weight
from sparse_jax.prune.activations import Activations
from sparse_jax.prune.blockwise import LayerMasks
from sparse_jax.quant import Grid, fake_quantize
from sparse_jax.sparsity.adapters import settle
from sparse_jax.tree import from_paths, leaf_paths
from sparse_jax.types import InputError, Params

LayerGrids = Mapping[str, Grid]
"""Leaf path -> grid of the matrix [in, out], scales [groups, out], of one layer."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class BlockTrainingConfig:
    """How a block trains. Its batches are those of the calibration.

    Attributes:
      epochs: passes over the calibration sequences.
      learning_rate: of the weights at first; it falls to 0 in a straight line.
      scale_rate: learning rate of scales over that of the weights.
      zero_rate: the same of zero points, which are counted in codes.
      clip_norm: gradients are scaled down to this global norm.
      seed: of the order of the batches.
    """

    epochs: int = 5
    learning_rate: float = 3e-4
    scale_rate: float = 0.3
    zero_rate: float = 1.0
    clip_norm: float = 1.0
    seed: int = 0

    def __post_init__(self):
        if self.epochs < 1:
            raise InputError(f"tune.epochs must be at least 1, found {self.epochs}")
        for name in ("learning_rate", "scale_rate", "zero_rate", "clip_norm"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise InputError(f"tune.{name} must be >= 0, found {value!r}")


class TrainedBlock(NamedTuple):
    """A block after training.

    Attributes:
      params: `params["layers"]` at one layer; pruned weights zero, others on the grids.
      grids: by path in the whole model.
      before: relative error of the outputs, of the block as it came.
      after: of the block as it is; never more.
    """

    params: Params
    grids: dict[str, Grid]
    before: float
    after: float


def train_block(
    layer_params: Params,
    masks: LayerMasks,
    grids: LayerGrids,
    inputs: Activations,
    targets: Activations,
    model_config: LlamaConfig,
    config: BlockTrainingConfig,
) -> TrainedBlock:
    """Trains all weights of a block, and its grids, towards the dense block's outputs.

    AdamW's directions without decay (arXiv 1711.05101), a step per batch. The error on
    all calibration data is measured before, and after every epoch; the best is kept.

    Args:
      layer_params: `params["layers"]` at one layer, pruned and quantised.
      masks: by path in the whole model; what they prune stays zero.
      grids: of the quantised matrices, by the same paths; others stay floats.
      inputs: activations that enter the new block.
      targets: outputs of the dense block on its own inputs, in the same batches.
      model_config: architecture.
      config: how.

    Raises:
      InputError: the activations are not finite, or not as many on both sides.
    """
    leaves = leaf_paths({"layers": layer_params})
    masks = {path: mask for path, mask in masks.items() if path in leaves}
    data = _Data.of(inputs, targets)
    error_of = functools.partial(data.error, masks, model_config=model_config)
    trained = best = {"weights": leaves, "grids": dict(grids)}
    before = least = error_of(best)
    moments = _transformation(config).init(trained)
    options = {"model_config": model_config, "config": config}
    order = np.random.default_rng(config.seed)
    for epoch in range(config.epochs):
        for done, index in enumerate(order.permutation(len(inputs)).tolist()):
            progress = (epoch + done / len(inputs)) / config.epochs
            rate = np.float32(config.learning_rate * (1 - progress))
            sums = data.batch(index), data.energy_per_sequence
            trained, moments = _step(trained, moments, masks, *sums, rate, **options)
        error = error_of(trained)
        if error < least:
            best, least = trained, error
    weights, new_grids = _rounded(best, masks)
    return TrainedBlock(from_paths(weights)["layers"], new_grids, before, least)


class _Data(NamedTuple):
    """What a block reads and what it should make of it, batch by batch.

    Attributes:
      inputs: of the new block.
      targets: of the dense one.
      counts: sequences of every batch that count, see `Activations.samples`.
      energy: |t|^2 over all targets.
    """

    inputs: Activations
    targets: Activations
    counts: list[np.int32]
    energy: float

    @classmethod
    def of(cls, inputs: Activations, targets: Activations) -> "_Data":
        if len(inputs) != len(targets) or not len(inputs):
            raise InputError(
                f"tune: {len(inputs)} batches of inputs and {len(targets)} of targets; "
                "it needs calibration text, and the same for both"
            )
        counts = _counts(inputs)
        sums = [_energy(*pair) for pair in zip(targets, counts, strict=True)]
        energy = sum(float(total) for total in sums)
        if not math.isfinite(energy):
            raise InputError("tune: the dense block's outputs are not finite")
        return cls(inputs, targets, counts, max(energy, 1e-30))

    @property
    def energy_per_sequence(self) -> np.float32:
        return np.float32(self.energy / sum(self.counts))

    def batch(self, index: int) -> tuple[Array, Array, np.int32]:
        return self.inputs[index], self.targets[index], self.counts[index]

    def error(self, masks: LayerMasks, trained: Any, **options: Any) -> float:
        """|y - t|^2 / |t|^2 of a block with these weights and grids."""
        total = 0.0
        for index in range(len(self.inputs)):
            total += float(_error(trained, masks, *self.batch(index), **options))
        return total / self.energy


def _counts(inputs: Activations) -> list[np.int32]:
    """How many sequences of every batch count, see `Activations.samples`."""
    counts, left = [], inputs.samples
    for x_BTD in inputs:
        counts.append(np.int32(min(left, x_BTD.shape[0])))
        left -= x_BTD.shape[0]
    return counts


def _transformation(config: BlockTrainingConfig) -> optax.GradientTransformation:
    """Gradients to descent directions of `{"weights": ..., "grids": ...}`."""

    def scaled(directions: Any, _: Any) -> Any:
        grids = {
            path: dataclasses.replace(
                grid,
                scales=config.scale_rate * grid.scales,
                zeros=None if grid.zeros is None else config.zero_rate * grid.zeros,
            )
            for path, grid in directions["grids"].items()
        }
        return {**directions, "grids": grids}

    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        optax.scale_by_adam(b1=0.9, b2=0.95),
        optax.stateless(scaled),
    )


@functools.partial(
    jax.jit,
    static_argnames=("model_config", "config"),
)
def _step(
    trained, moments, masks, batch, energy, rate, *, model_config, config
) -> tuple[Any, Any]:
    x_BTD, t_BTD, count = batch

    def loss(trained):
        error = _squares(trained, masks, x_BTD, t_BTD, count, model_config)
        return error / (energy * count)

    grads = jax.grad(loss)(trained)
    updates, moments = _transformation(config).update(grads, moments)
    trained = jax.tree.map(lambda w, u: w - rate * u, trained, updates)
    return trained, moments


@functools.partial(jax.jit, static_argnames="model_config")
def _error(trained, masks, x_BTD, t_BTD, count, *, model_config) -> Float[Array, ""]:
    return _squares(trained, masks, x_BTD, t_BTD, count, model_config)


def _squares(trained, masks, x_BTD, t_BTD, count, model_config) -> Float[Array, ""]:
    """Sum of the squared differences between outputs and targets."""
    weights = dict(trained["weights"])
    for path in {*masks, *trained["grids"]}:
        grid, quantize = trained["grids"].get(path), None
        if grid is not None:
            quantize = functools.partial(fake_quantize, grid=grid)
        options = {"fake_quant": quantize}
        weights[path] = effective_weight(weights[path], masks.get(path), **options)
    y_BTD, _ = block(from_paths(weights)["layers"], x_BTD, model_config)
    return _energy(y_BTD.astype(jnp.float32) - t_BTD.astype(jnp.float32), count)


@jax.jit
def _energy(x_BTD: Array, count: Int[Array, ""]) -> Float[Array, ""]:
    """Sum of the squares of the first `count` sequences."""
    squares_B = jnp.sum(jnp.square(x_BTD.astype(jnp.float32)), axis=(1, 2))
    return jnp.sum(jnp.where(jnp.arange(len(squares_B)) < count, squares_B, 0))


def _rounded(trained, masks) -> tuple[dict[str, Array], dict[str, Grid]]:
    """Weights that lie on their grids, and the grids as they are stored."""
    weights, grids = dict(trained["weights"]), dict(trained["grids"])
    for path in {*masks, *grids}:
        mask = masks.get(path)
        if path in grids:
            weights[path], grids[path] = settle(weights[path], grids[path], mask)
        else:
            weights[path] = effective_weight(weights[path], mask)
    return weights, grids
