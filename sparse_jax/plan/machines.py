"""Machines by name: the published figures of a chip, and how many there are."""

import dataclasses
import math
import re

from sparse_jax.types import InputError

GB, GiB = 10**9, 2**30

_SQUARES = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_CUBES = (
    *("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8"),
    *("8x8x8", "8x8x16", "8x16x16", "16x16x16", "16x16x24"),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chip:
    """What one device can do at best, as its maker publishes it.

    Attributes:
      name: of the chip.
      platform: "tpu" or "gpu".
      memory: bytes a program may use.
      flops: dense bfloat16 floating-point operations per second.
      memory_rate: bytes per second between memory and compute units.
      link_rate: bytes per second that a device sends, over all its links.
      source: where the figures are published.
      shapes: topologies that exist; empty where devices are only counted.
      devices: per chip; a TPU7x is two, with half of everything each.
      granule: bytes; every array takes a multiple of them.
      node: devices that share fast links; None = all of them.
      node_rate: bytes per second that a device sends beyond them.
    """

    name: str
    platform: str
    memory: int
    flops: float
    memory_rate: float
    link_rate: float
    source: str
    shapes: tuple[str, ...] = ()
    devices: int = 1
    granule: int = 1
    node: int | None = None
    node_rate: float | None = None


def _tpu(name, memory, flops, memory_rate, link_rate, page, shapes, devices=1) -> Chip:
    return Chip(
        name=name,
        platform="tpu",
        memory=int(memory * GiB),
        flops=flops,
        memory_rate=memory_rate,
        link_rate=link_rate,
        source=f"https://docs.cloud.google.com/tpu/docs/{page}",
        shapes=shapes,
        devices=devices,
        granule=512,  # one tile of 128 words
    )


def _gpu(name, memory, flops, memory_rate, link_rate, source) -> Chip:
    return Chip(
        name=name,
        platform="gpu",
        memory=memory * GB,
        flops=flops,
        memory_rate=memory_rate,
        link_rate=link_rate,
        source=source,
        node=8,
        node_rate=50e9,  # one 400 Gbit/s adapter per GPU, as in the DGX of its kind
    )


CHIPS: dict[str, Chip] = {
    # The memory is what XLA's TPU compiler lets a program have.
    "v5e": _tpu("TPU v5e", 15.75, 197e12, 819e9, 200e9, "v5e", _SQUARES),
    "v6e": _tpu("TPU v6e", 31.25, 918e12, 1638e9, 400e9, "v6e", _SQUARES),
    "v5p": _tpu("TPU v5p", 95.74, 459e12, 2765e9, 600e9, "v5p", _CUBES),
    "tpu7x": _tpu(
        *("half a TPU7x", 94.75, 1153e12, 3690e9, 300e9, "tpu7x", _CUBES[:-1]),
        devices=2,
    ),
    "A100": _gpu(
        *("A100 SXM 80 GB", 80, 312e12, 2039e9, 300e9),
        "https://www.nvidia.com/en-us/data-center/a100",
    ),
    "H100": _gpu(
        *("H100 SXM", 80, 989e12, 3350e9, 450e9),
        "https://www.nvidia.com/en-us/data-center/h100",
    ),
    "H200": _gpu(
        *("H200 SXM", 141, 989e12, 4800e9, 450e9),
        "https://www.nvidia.com/en-us/data-center/h200",
    ),
    "B200": _gpu(
        *("B200 in a DGX", 180, 2250e12, 8000e9, 900e9),
        "https://www.nvidia.com/en-us/data-center/dgx-b200",
    ),
}
"""By name. Link rates are of one direction: half of what is published for both."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Machine:
    """Devices of one kind.

    Attributes:
      name: as the user wrote it.
      chip: their figures.
      devices: how many there are, as JAX counts them.
    """

    name: str
    chip: Chip
    devices: int

    @property
    def link_rate(self) -> float:
        """Bytes per second of a device in a collective over all devices.

        A ring over several nodes is as fast as its slowest link.
        """
        chip = self.chip
        if chip.node is None or chip.node_rate is None or self.devices <= chip.node:
            return chip.link_rate
        return chip.node_rate


def topology(name: str) -> Machine:
    """A TPU slice by the name that JAX gives its topology.

    Raises:
      InputError: there is no such slice; the message lists those there are.

    Example:
      >>> topology("v5e:16x16").devices, topology("tpu7x:4x4x4").devices
      (256, 128)
    """
    kind, _, shape = name.partition(":")
    chip = CHIPS.get(kind)
    if chip is None or shape not in chip.shapes:
        known = {k: c.shapes for k, c in CHIPS.items() if c.shapes}
        if chip is not None and chip.shapes:
            known = {kind: chip.shapes}
        names = "; ".join(f"{k}: {', '.join(shapes)}" for k, shapes in known.items())
        raise InputError(
            f"topology: {name!r} does not exist; write KIND:SHAPE with one of {names}"
        )
    devices = math.prod(map(int, shape.split("x"))) * chip.devices
    return Machine(name=name, chip=chip, devices=devices)


def gpus(name: str) -> Machine:
    """GPUs by number and kind, such as "64xH100".

    Raises:
      InputError: it is not a number and a known kind.

    Example:
      >>> gpus("64xH100").link_rate / 1e9
      50.0
    """
    match = re.fullmatch(r"([1-9]\d*)x(\w+)", name)
    chip = CHIPS.get(match[2]) if match else None
    if match is None or chip is None or chip.platform != "gpu":
        kinds = [kind for kind, chip in CHIPS.items() if chip.platform == "gpu"]
        raise InputError(
            f"gpus: {name!r} is unknown; write a number and a kind, such as 64xH100, "
            f"with one of {', '.join(kinds)}"
        )
    return Machine(name=name, chip=chip, devices=int(match[1]))
