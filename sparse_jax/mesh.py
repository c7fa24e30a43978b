"""The device mesh, its axes, and the one table that says how leaves are sharded.

Three axes, each of size 1 by default:

    data    replicas of the model; the batch is split, gradients are summed
    fsdp    the batch is split and so are the weights (fully sharded data parallel)
    tensor  heads, feed-forward neurons and the vocabulary are split

Masks and optimizer moments carry the path of their weight, so the same table shards
them as their weight.
"""

import dataclasses
import re
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from sparse_jax.types import InputError

P = PartitionSpec
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
    needed, found = int(np.prod(sizes)), jax.device_count()
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


def check_batch(batch_size: int, mesh: Mesh) -> None:
    """Raises InputError when a batch does not divide over the mesh's batch axes."""
    shards = int(np.prod([mesh.shape[axis] for axis in BATCH]))
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


def shardings(mesh: Mesh, tree: Any) -> Any:
    """The sharding of every leaf of a pytree of arrays or shapes.

    A dimension that an axis does not divide stays whole, so that a small model runs
    on any mesh.
    """

    def leaf_sharding(key_path: Any, leaf: Any) -> NamedSharding:
        path = "/".join(_key_name(key) for key in key_path)
        spec = spec_for(path)
        if len(spec) > len(leaf.shape):
            spec = P()
        fitted = [
            axis if axis is None or size % mesh.shape[axis] == 0 else None
            for axis, size in zip(spec, leaf.shape, strict=False)
        ]
        return NamedSharding(mesh, P(*fitted))

    return jax.tree_util.tree_map_with_path(leaf_sharding, tree)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The sharding of a [B, T] array of a batch."""
    return NamedSharding(mesh, P(BATCH))


def constrain(x: jax.Array, *axes: Any) -> jax.Array:
    """Pins the sharding of an activation when a mesh is set; else returns it as it is.

    Args:
      x: activation.
      axes: one mesh axis, tuple of axes or None per dimension.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return x
    return jax.lax.with_sharding_constraint(x, P(*axes))


def _key_name(key: Any) -> str:
    for attribute in ("key", "name", "idx"):
        if hasattr(key, attribute):
            return str(getattr(key, attribute))
    return str(key)
