"""Bytes that a compiled program sends between devices, by kind of collective.

A device of a ring of n sends, for a payload of b bytes,

    all-gather, reduce-scatter, all-to-all   b (n - 1) / n       b = the whole array
    all-reduce                               2 b (n - 1) / n
    collective-permute                       b
"""

import dataclasses
import math
import re

from sparse_jax.plan import hlo

KINDS = (
    "all-gather",
    "reduce-scatter",
    "all-reduce",
    "all-to-all",
    "collective-permute",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Collective:
    """All collectives of one kind of a step.

    Attributes:
      kind: one of `KINDS`.
      count: how many run.
      payload: bytes of the whole arrays, on one device.
      sent: bytes that a device sends in a ring.
    """

    kind: str
    count: int
    payload: int
    sent: float


def collectives(text: str, devices: int) -> tuple[list[Collective], int]:
    """What a device sends in one run of a compiled program.

    TPU programs cut a collective that overlaps with compute into several fusions, each
    of which names it again with the same channel; it is counted once.

    Args:
      text: of the compiled program.
      devices: that run it.

    Returns:
      One entry for each kind there is, in the order of `KINDS`, and the number of loops
      whose length the program does not tell, counted as one run.
    """
    computations, entry = hlo.parse(text)
    found = {}
    seen, unknown = set(), 0
    for i, owner, times, _ in hlo.executions(computations, entry):
        if i.opcode == "while":
            unknown += hlo.trip_count(i, computations) is None
        kind = i.opcode.removesuffix("-start")
        if kind not in KINDS:
            continue
        channel = re.search(r"channel_id=(\d+)", i.attributes)
        key = owner, kind, channel[1] if channel else i.name
        if key in seen:
            continue
        seen.add(key)
        size, n = _payload(i, kind), _group(i.attributes, devices)
        if kind == "reduce-scatter":
            size *= n
        before = found.get(kind, Collective(kind=kind, count=0, payload=0, sent=0.0))
        found[kind] = Collective(
            kind=kind,
            count=before.count + times,
            payload=before.payload + times * size,
            sent=before.sent + times * _sent(kind, size, n),
        )
    return [found[kind] for kind in KINDS if kind in found], unknown


def _sent(kind: str, size: int, n: int) -> float:
    if kind == "collective-permute":
        return float(size)
    return size * (n - 1) / n * (2 if kind == "all-reduce" else 1)


def _payload(i: hlo.Instruction, kind: str) -> int:
    sizes = [array.bytes for array in i.arrays]
    if i.opcode.endswith("-start"):
        # (operands, results, ...), of which the words that synchronise are left out.
        if kind == "collective-permute":
            return sizes[1]
        if kind == "all-gather":
            return sum(sizes[len(sizes) // 2 :])
    return sum(sizes)


def _group(attributes: str, devices: int) -> int:
    """Devices that take part in one collective, in XLA's three notations."""
    if match := re.search(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}", attributes):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", match[1]))
        axes = re.findall(r"'(\w+)'(?::\(\d+\)(\d+))?", match[2])
        return math.prod(int(part or sizes[axis]) for axis, part in axes)
    if match := re.search(r"replica_groups=\[(\d+),(\d+)\]", attributes):
        return int(match[2])
    if match := re.search(r"replica_groups=\{\{([\d,]+)\}", attributes):
        return len(match[1].split(","))
    return devices
