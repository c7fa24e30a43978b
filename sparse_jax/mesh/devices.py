"""The device mesh in use, and which rows of a batch a process feeds to it."""

import contextlib
import math
from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import AbstractMesh, AxisType, Mesh

from sparse_jax.mesh.axes import (
    AXES,
    BATCH,
    NO_NEEDS,
    MeshConfig,
    Needs,
    axis_sizes,
    check,
    nearest,
    share_of,
)
from sparse_jax.mesh.sharding import batch_sharding
from sparse_jax.types import InputError


def make_mesh(
    config: MeshConfig = MeshConfig(),
    needs: Needs = NO_NEEDS,
    devices: Sequence[Any] | None = None,
) -> Mesh:
    """Makes the device mesh, one device by default.

    Args:
      config: sizes of the axes.
      needs: what the axes must divide, see `check`.
      devices: to lay it over; None = all of the backend.

    Raises:
      InputError: see `check_here`; or the axes cannot follow the devices' links.

    Example:
      >>> dict(make_mesh().shape)
      {'data': 1, 'fsdp': 1, 'tensor': 1}
    """
    found = jax.devices() if devices is None else devices
    if devices is None:
        check_here(config, needs)
    else:
        check(config, len(found), needs)
    try:
        return _lay(config, found)
    except NotImplementedError:  # what JAX raises where a torus has no such axes
        problem = f"mesh: {config} cannot be laid along the links of these devices"
    for near in nearest(config, len(found), needs):
        with contextlib.suppress(NotImplementedError):
            _lay(near, found)
            raise InputError(f"{problem}; the nearest mesh that can is {near}")
    raise InputError(f"{problem}, and no other mesh that works; use other devices")


def check_here(config: MeshConfig, needs: Needs = NO_NEEDS) -> None:
    """`check` for the devices there are, of which one process may leave all but one."""
    if config != MeshConfig() or jax.process_count() > 1:
        check(config, jax.device_count(), needs)


def _lay(config: MeshConfig, devices: Sequence[Any]) -> Mesh:
    sizes = axis_sizes(config)
    kinds = (AxisType.Auto,) * len(AXES)
    some = devices[: math.prod(sizes)]
    return jax.make_mesh(sizes, AXES, axis_types=kinds, devices=some)


def abstract_mesh(config: MeshConfig) -> AbstractMesh:
    """A mesh without devices, to reckon with."""
    kinds = (AxisType.Auto,) * len(AXES)
    return AbstractMesh(axis_sizes(config), AXES, axis_types=kinds)


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
