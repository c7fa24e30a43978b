"""The device mesh, its axes, and the one table that says how leaves are sharded.

Three axes, each of size 1 by default:

    data    replicas of the model; the batch is split, gradients are summed
    fsdp    the batch is split and so are the weights (fully sharded data parallel)
    tensor  heads, feed-forward neurons and the vocabulary are split

Masks and optimizer moments carry the path of their weight, so the same table shards
them as their weight.
"""

import dataclasses
import math
import re
from typing import Any

import jax
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from sparse_jax.types import InputError

P = PartitionSpec
Axis = str | tuple[str, ...] | None
AXES = ("data", "fsdp", "tensor")
BATCH = ("data", "fsdp")

SHARDING_RULES: tuple[tuple[str, PartitionSpec], ...] = (
    (r"(.*/)?embed/embedding", P("tensor", "fsdp")),
    (r"(.*/)?layers/.*/(q|k|v|gate|up)/kernel", P(None, "fsdp", "tensor")),
    (r"(.*/)?layers/.*/(o|down)/kernel", P(None, "tensor", "fsdp")),
    (r"(.*/)?layers/.*/(q|k|v|gate|up)/bias", P(None, "tensor")),
    (r"(.*/)?lm_head/kernel", P("fsdp", "tensor")),
    (r".*", P()),
)
"""(path regex, spec) pairs; the first full match wins."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshConfig:
    """Sizes of the mesh axes; their product is the number of devices used."""

    data: int = 1
    fsdp: int = 1
    tensor: int = 1


def make_mesh(config: MeshConfig = MeshConfig()) -> Mesh:
    """Makes the device mesh, one device by default.

    Raises:
      InputError: the sizes need another number of devices than there are.

    Example:
      >>> dict(make_mesh().shape)
      {'data': 1, 'fsdp': 1, 'tensor': 1}
    """
    sizes = tuple(getattr(config, axis) for axis in AXES)
    needed, found = math.prod(sizes), jax.device_count()
    if min(sizes) < 1 or needed > found or (needed != found and needed > 1):
        raise InputError(
            f"mesh: {dict(zip(AXES, sizes, strict=True))} needs {needed} devices, "
            f"found {found}; set mesh.data, mesh.fsdp and mesh.tensor so that their "
            "product is the device count"
        )
    return jax.make_mesh(
        sizes,
        AXES,
        axis_types=(AxisType.Auto,) * len(AXES),
        devices=jax.devices()[:needed],
    )


def current() -> Mesh:
    """The mesh set by `jax.set_mesh`, else one device."""
    mesh = jax.sharding.get_mesh()
    return make_mesh() if mesh.empty else mesh


def check_batch(batch_size: int, mesh: Mesh | AbstractMesh) -> None:
    """Raises InputError when a batch does not divide over the mesh's batch axes."""
    shards = math.prod(mesh.shape[axis] for axis in BATCH)
    if batch_size % shards:
        raise InputError(
            f"train.batch_size: {batch_size} does not divide over "
            f"{shards} devices (mesh axes data x fsdp); use a multiple of {shards}"
        )


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
