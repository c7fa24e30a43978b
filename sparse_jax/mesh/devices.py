"""The device mesh in use, and which rows of a batch a process feeds to it."""

import math

import jax
from jax.sharding import AxisType, Mesh

from sparse_jax.mesh.axes import (
    AXES,
    BATCH,
    NO_NEEDS,
    MeshConfig,
    Needs,
    axis_sizes,
    check,
    share_of,
)
from sparse_jax.mesh.sharding import batch_sharding


def make_mesh(config: MeshConfig = MeshConfig(), needs: Needs = NO_NEEDS) -> Mesh:
    """Makes the device mesh, one device by default.

    Args:
      config: sizes of the axes.
      needs: what the axes must divide, see `check`.

    Raises:
      InputError: see `check`.

    Example:
      >>> dict(make_mesh().shape)
      {'data': 1, 'fsdp': 1, 'tensor': 1}
    """
    check(config, jax.device_count(), needs)
    sizes = axis_sizes(config)
    return jax.make_mesh(
        sizes,
        AXES,
        axis_types=(AxisType.Auto,) * len(AXES),
        devices=jax.devices()[: math.prod(sizes)],
    )


def current() -> Mesh:
    """The mesh set by `jax.set_mesh`, else one device."""
    mesh = jax.sharding.get_mesh()
    return make_mesh() if mesh.empty else mesh


def batch_share(mesh: Mesh) -> tuple[int, int]:
    """Which part of every batch this process feeds to its devices, of how many.

    Processes whose devices hold the same rows, since a tensor axis spans them, feed
    the same part.

    Returns:
      (index, count): rows [index B / count, (index + 1) B / count) of a batch.

    Raises:
      InputError: the devices of the processes overlap in part.
    """
    shards = math.prod(mesh.shape[axis] for axis in BATCH)
    held: dict[int, set[int]] = {}
    for device, (rows,) in batch_sharding(mesh).devices_indices_map((shards,)).items():
        held.setdefault(device.process_index, set()).add(rows.start or 0)
    return share_of(held, jax.process_index())
