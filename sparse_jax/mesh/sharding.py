"""The one table that says how leaves are sharded, and what follows from it.

Masks and optimizer moments carry the path of their weight, so the same table shards
them as their weight.
"""

import math
import re
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from sparse_jax.mesh.axes import BATCH

P = PartitionSpec
Axis = str | tuple[str, ...] | None

_MATRIX = "(kernel(/kernel)?|slorb_s|slorb_x|quant_scale|quant_zero)"
"""A kernel, also inside of a leaf (`ops.RoundedInput`), or what is beside it."""

SHARDING_RULES: tuple[tuple[str, PartitionSpec], ...] = (
    (r"(.*/)?embed/embedding", P("tensor", "fsdp")),
    (rf"(.*/)?layers/.*/(q|k|v|gate|up)/{_MATRIX}", P(None, "fsdp", "tensor")),
    (rf"(.*/)?layers/.*/(o|down)/{_MATRIX}", P(None, "tensor", "fsdp")),
    (r"(.*/)?layers/.*/(q|k|v|gate|up)/scale", P(None, None, "tensor")),
    (r"(.*/)?layers/.*/(o|down)/scale", P(None, None, "fsdp")),
    (r"(.*/)?layers/.*/lora_a", P(None, "fsdp")),
    (r"(.*/)?layers/.*/lora_b", P(None, None, "fsdp")),
    (r"(.*/)?layers/.*/(q|k|v|gate|up)/bias", P(None, "tensor")),
    (rf"(.*/)?lm_head/{_MATRIX}", P("fsdp", "tensor")),
    (r".*", P()),
)
"""(path regex, spec) pairs; the first full match wins."""


def batch_shards() -> int:
    """Into how many parts the mesh in use cuts a batch, inside and outside of jit."""
    shape = jax.sharding.get_abstract_mesh().shape
    return math.prod(shape.get(axis, 1) for axis in BATCH)


def spec_for(path: str) -> PartitionSpec:
    """The sharding of the leaf at `path`, from `SHARDING_RULES`."""
    for pattern, spec in SHARDING_RULES:
        if re.fullmatch(pattern, path):
            return spec
    raise AssertionError("SHARDING_RULES ends with a rule that matches everything")


def specs(mesh: Mesh | AbstractMesh, tree: Any) -> Any:
    """The partition spec of every leaf of a pytree of arrays or shapes.

    A dimension that an axis does not divide stays whole, so that a small model runs
    on any mesh.
    """

    def leaf_spec(key_path: Any, leaf: Any) -> PartitionSpec:
        spec = spec_for("/".join(_key_name(key) for key in key_path))
        if len(spec) > len(leaf.shape):
            return P()
        axes = [
            _fitting(mesh, axis, size)
            for axis, size in zip(spec, leaf.shape, strict=False)
        ]
        # Written as JAX writes the sharding of a step's result, so that the next step
        # sees the same one: no axes of size 1, no None at the end.
        while axes and axes[-1] is None:
            axes.pop()
        return P(*axes)

    return jax.tree_util.tree_map_with_path(leaf_spec, tree)


def shardings(mesh: Mesh, tree: Any) -> Any:
    """The sharding of every leaf of a pytree of arrays or shapes; see `specs`."""
    return jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs(mesh, tree))


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The sharding of a [B, T] array of a batch."""
    return NamedSharding(mesh, P(BATCH))


def constrain(x: jax.Array, *axes: Axis) -> jax.Array:
    """Pins the sharding of an activation when a mesh is set; else returns it as it is.

    Args:
      x: activation.
      axes: one mesh axis, tuple of axes or None per dimension.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return x
    fitting = (_fitting(mesh, *pair) for pair in zip(axes, x.shape, strict=True))
    return jax.lax.with_sharding_constraint(x, P(*fitting))


def constrain_tree(tree: Any) -> Any:
    """Pins every leaf of a state to its `SHARDING_RULES`; see `constrain`."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return tree
    return jax.lax.with_sharding_constraint(tree, specs(mesh, tree))


def place_rows(mesh: Mesh, array: jax.Array | np.ndarray) -> jax.Array | np.ndarray:
    """Cuts an array along axis 0, like a batch, over a mesh of several devices.

    Args:
      mesh: its batch axes divide the rows.
      array: of the host: whole, and the same, on every process, which places its
        devices' rows; or of devices, which is moved if need be.
    """
    if mesh.size == 1:
        return array
    # Written as JAX writes the sharding of a result, see `specs`.
    axes = tuple(axis for axis in BATCH if mesh.shape[axis] > 1)
    spec = P(axes if len(axes) > 1 else axes[0]) if axes else P()
    sharding = NamedSharding(mesh, spec)
    if isinstance(array, jax.Array):
        return jax.device_put(array, sharding)
    return jax.make_array_from_callback(array.shape, sharding, lambda i: array[i])


def to_host(array: jax.Array | np.ndarray) -> np.ndarray:
    """An array that need not be replicated, whole on every process's host."""
    if isinstance(array, jax.Array) and not (
        array.is_fully_addressable or array.is_fully_replicated
    ):
        return np.asarray(multihost_utils.process_allgather(array, tiled=True))
    return np.asarray(array)


def _fitting(mesh: Mesh | AbstractMesh, axis: Axis, size: int) -> Axis:
    """The axis (or axes) when it really cuts a dimension of this size, else None."""
    names = (axis,) if isinstance(axis, str) else axis or ()
    shards = math.prod(mesh.shape[name] for name in names)
    return axis if shards > 1 and size % shards == 0 else None


def _key_name(key: Any) -> str:
    for attribute in ("key", "name", "idx"):
        if hasattr(key, attribute):
            return str(getattr(key, attribute))
    return str(key)
