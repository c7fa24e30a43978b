"""The axes of the device mesh, and which meshes fit a model and a batch."""

import dataclasses
import math
from collections.abc import Collection, Mapping
from types import MappingProxyType

from sparse_jax.types import InputError

AXES = ("data", "fsdp", "tensor")
BATCH = ("data", "fsdp")

Needs = Mapping[str, tuple[tuple[str, ...], int]]
"""Name of a field -> (axes, size): the product of the axes must divide the size."""

NO_NEEDS: Needs = MappingProxyType({})


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshConfig:
    """Sizes of the mesh axes; their product is the number of devices used."""

    data: int = 1
    fsdp: int = 1
    tensor: int = 1

    def __str__(self) -> str:
        return ", ".join(f"{axis}={getattr(self, axis)}" for axis in AXES)


def check(config: MeshConfig, devices: int, needs: Needs = NO_NEEDS) -> None:
    """Raises InputError unless a mesh has all devices and cuts everything evenly.

    Args:
      config: sizes of the axes.
      devices: how many there are.
      needs: name of a field -> (axes, size): the axes' product must divide the size.

    Example:
      >>> check(MeshConfig(tensor=8), 8, {"model.n_kv_heads": (("tensor",), 4)})
      Traceback (most recent call last):
        ...
      sparse_jax.types.InputError: mesh: tensor = 8 does not divide model.n_kv_heads 4;
      the nearest mesh of 8 devices that works is data=1, fsdp=2, tensor=4
    """
    problem = _problem(config, devices, needs)
    if problem is None:
        return
    near = next(iter(nearest(config, devices, needs)), None)
    if near is None:
        hint = f"no mesh of {devices} devices works, use fewer devices"
    else:
        hint = f"the nearest mesh of {devices} devices that works is {near}"
    raise InputError(f"mesh: {problem}; {hint}")


def axis_sizes(config: MeshConfig) -> tuple[int, ...]:
    """The sizes in the order of `AXES`."""
    return tuple(getattr(config, axis) for axis in AXES)


def _problem(config: MeshConfig, devices: int, needs: Needs) -> str | None:
    """The first thing that is wrong with a mesh, in words."""
    sizes = dict(zip(AXES, axis_sizes(config), strict=True))
    product = math.prod(sizes.values())
    if min(sizes.values()) < 1 or product != devices:
        return f"{sizes} needs {product} devices, found {devices}"
    for name, (axes, size) in needs.items():
        shards = math.prod(sizes[axis] for axis in axes)
        if size % shards:
            return f"{' x '.join(axes)} = {shards} does not divide {name} {size}"
    return None


def nearest(config: MeshConfig, devices: int, needs: Needs) -> list[MeshConfig]:
    """All meshes that work, those first whose axes differ by the smallest factors.

    Example:
      >>> [str(mesh) for mesh in nearest(MeshConfig(fsdp=2), 2, {})]
      ['data=1, fsdp=2, tensor=1', 'data=1, fsdp=1, tensor=2',
       'data=2, fsdp=1, tensor=1']
    """
    divisors = [n for n in range(1, devices + 1) if devices % n == 0]
    meshes = [
        MeshConfig(data=devices // (fsdp * tensor), fsdp=fsdp, tensor=tensor)
        for fsdp in divisors
        for tensor in divisors
        if devices % (fsdp * tensor) == 0
    ]

    def distance(mesh: MeshConfig) -> tuple[float, int]:
        pairs = zip(axis_sizes(mesh), axis_sizes(config), strict=True)
        factors = sum(abs(math.log(a / max(1, b))) for a, b in pairs)
        return round(factors, 6), mesh.data  # replicas cost the most memory

    working = [mesh for mesh in meshes if _problem(mesh, devices, needs) is None]
    return sorted(working, key=distance)


def batch_needs(
    batch_size: int, accumulate: int = 1
) -> dict[str, tuple[tuple[str, ...], int]]:
    """What a batch asks of a mesh, for `check`: each micro-batch is cut evenly.

    Args:
      batch_size: rows per step, a multiple of `accumulate`.
      accumulate: micro-batches per step.
    """
    name = "train.batch_size"
    if accumulate > 1:
        name += f" / train.accumulate = {batch_size} / {accumulate} ="
    return {name: (BATCH, batch_size // accumulate)}


def share_of(held: Mapping[int, Collection[int]], process: int) -> tuple[int, int]:
    """`batch_share` of a process, given which shards of the batch each one holds.

    Example:
      >>> share_of({0: {0, 2}, 1: {1, 3}, 2: {0, 2}, 3: {1, 3}}, process=3)
      (1, 2)
    """
    parts = sorted({tuple(sorted(shards)) for shards in held.values()})
    if len(set(map(len, parts))) > 1 or len(set().union(*parts)) < sum(map(len, parts)):
        raise InputError(
            "mesh: the rows of the batch that the processes hold overlap in part; "
            "choose sizes of which each divides, or is a multiple of, the number of "
            "devices of a process"
        )
    return parts.index(tuple(sorted(held[process]))), len(parts)
