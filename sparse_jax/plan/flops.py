"""Floating-point operations that a step executes, counted in its jaxpr.

Those of XLA's cost analysis leave out the repetitions of a loop and the inside of a
Pallas kernel. Only matrix products are counted: 2 operations per multiply and add.
"""

import dataclasses
import functools
import math
from typing import Any

from sparse_jax import train
from sparse_jax.mesh import MeshConfig
from sparse_jax.plan.job import (
    Job,
    abstract_batch,
    abstract_state,
    abstract_teacher,
)
from sparse_jax.train import OptimizerConfig


def executed(job: Job) -> int:
    """Operations of a step over all devices, with all that is computed again.

    A device executes an equal share of them, on whatever mesh and in however many
    micro-batches.
    """
    optimizer = OptimizerConfig(trainable=job.optimizer.trainable)
    plain = dataclasses.replace(
        job, mesh=MeshConfig(), accumulate=1, optimizer=optimizer
    )
    return _executed(plain)


@functools.lru_cache(maxsize=32)
def _executed(job: Job) -> int:
    name = job.compute.attention
    if name == "cudnn":
        # It does what splash does, but cannot be traced where there is no GPU.
        name = "splash" if job.seq_len % 128 == 0 else "blockwise"
    traced = train.train_step.trace(
        abstract_state(job),
        abstract_batch(job),
        1e-4,
        abstract_teacher(job),
        loss=job.loss(attention=name),
        optimizer=job.optimizer,
        mask_mode=job.mask_mode,
    )
    return products(traced.jaxpr.jaxpr)


def products(jaxpr: Any) -> int:
    """Operations of a jaxpr's matrix products.

    A scan counts as often as it is long, a branch as its longest, a loop of unknown
    length once.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> x = jnp.ones((2, 3))
      >>> products(jax.make_jaxpr(lambda x: jax.lax.map(lambda y: y @ x, x @ x.T))(x))
      48
    """
    return sum(_equation(equation) for equation in jaxpr.eqns)


def _equation(equation: Any) -> int:
    name, parameters = equation.primitive.name, equation.params
    if name == "dot_general":
        (contracted, _), _ = parameters["dimension_numbers"]
        shape = equation.invars[0].aval.shape
        depth = math.prod(shape[axis] for axis in contracted)
        return 2 * depth * math.prod(equation.outvars[0].aval.shape)
    inner = [products(jaxpr) for jaxpr in _inner(parameters)]
    if name == "cond":
        return max(inner)
    if name == "scan":
        return parameters["length"] * sum(inner)
    if name == "pallas_call":
        grid = parameters["grid_mapping"].grid
        return int(math.prod(grid) * sum(inner) * _visible(equation))
    if name == "shard_map":
        return parameters["mesh"].size * sum(inner)
    return sum(inner)


def _visible(equation: Any) -> float:
    """The share of a kernel's grid that it computes.

    Splash attention skips the blocks above the diagonal of an n x n grid.
    """
    if "splash" not in str(equation.params.get("name", "")):
        return 1.0
    n = equation.params["grid_mapping"].grid[-1]
    return (n + 1) / (2 * n)


def _inner(parameters: Any) -> list[Any]:
    found = []
    for value in parameters.values():
        for item in value if isinstance(value, list | tuple) else [value]:
            item = getattr(item, "jaxpr", item)  # closed ones hold another
            if hasattr(item, "eqns"):
                found.append(item)
    return found
