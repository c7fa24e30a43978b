"""What goes to the devices at every step, on one process and on many."""

import functools

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from sparse_jax import mesh as mesh_lib
from sparse_jax.types import Batch


def place(
    sharding: NamedSharding, local: np.ndarray | jax.Array, shape: tuple[int, ...]
) -> jax.Array:
    """An array of `shape` of which each process gives the part on its devices.

    `jax.device_put` would first compare the array between all processes.
    """
    # Of several processes JAX takes this explicit transfer for an implicit one.
    with jax.transfer_guard_host_to_device("allow"):
        return jax.make_array_from_process_local_data(sharding, local, shape)


def to_devices(batch: Batch) -> Batch:
    """Places this process's rows of a batch on the mesh in use."""
    mesh = mesh_lib.current()
    sharding = mesh_lib.batch_sharding(mesh)
    rows = batch.tokens.shape[0] * _shares(mesh)
    return Batch(*(place(sharding, x, (rows, *x.shape[1:])) for x in batch))


def scalar_to_devices(value: float) -> jax.Array:
    """A float32 scalar on every device of the mesh in use."""
    return place(_everywhere(mesh_lib.current()), np.asarray(value, np.float32), ())


def to_all_devices(array: np.ndarray) -> jax.Array:
    """A whole array on every device of the mesh in use."""
    return place(_everywhere(mesh_lib.current()), array, array.shape)


def flag_to_devices(flag: bool) -> jax.Array:
    """One bool per device of the mesh in use, those of a process as it says."""
    mesh = mesh_lib.current()
    flags = np.full(len(mesh.local_devices), flag)
    return place(
        NamedSharding(mesh, PartitionSpec(mesh.axis_names)), flags, (mesh.size,)
    )


@functools.cache
def _shares(mesh: Mesh) -> int:
    """Into how many parts the processes divide a batch."""
    return mesh_lib.batch_share(mesh)[1]


def _everywhere(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())
