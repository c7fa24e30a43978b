"""Bytes that a compiled program moves between main memory and the chip.

Every instruction outside a fusion reads its operands and writes its result. Slices are
counted at their own size, and what XLA keeps on the chip not at all. It is an upper
estimate: a value that two instructions read is counted twice.
"""

import re

from sparse_jax.plan import hlo

_FREE = {
    "parameter",
    "constant",
    "tuple",
    "get-tuple-element",
    "bitcast",
    "while",
    "conditional",
    "call",
    "after-all",
    "iota",
    "partition-id",
}
"""They move nothing, or what they call is counted instead."""


def moved(text: str) -> int:
    """Bytes read and written by a device in one run of a compiled program.

    Args:
      text: of the compiled program.
    """
    computations, entry = hlo.parse(text)
    total, gathered = 0, set()
    for i, owner, times, fused in hlo.executions(computations, entry):
        if fused and i.opcode == "all-gather":
            # Of a gather in several fusions only the result is new.
            channel = re.search(r"channel_id=(\d+)", i.attributes)
            key = owner, channel[1] if channel else i.name
            total += times * _bytes(i) * (key not in gathered)
            gathered.add(key)
        elif not fused and i.opcode not in _FREE and not i.opcode.endswith("-done"):
            total += times * _moved(i, computations[owner], computations)
    return total


def _moved(
    i: hlo.Instruction,
    around: dict[str, hlo.Instruction],
    computations: hlo.Computations,
) -> int:
    operands = [around[name] for name in i.operands if name in around]
    if i.opcode == "dynamic-slice":
        return 2 * _bytes(i)
    if i.opcode == "dynamic-update-slice":
        return 2 * _bytes(operands[1])
    if i.opcode in ("copy-start", "slice-start"):
        # (target, source, ...) and (source, target, ...), one of them on the chip.
        source = i.arrays[1 if i.opcode == "copy-start" else 0]
        target = i.arrays[0 if i.opcode == "copy-start" else 1]
        return target.bytes * ((source.memory == 0) + (target.memory == 0))
    if i.opcode.endswith("-start"):
        # The result repeats the operands; each is read once and written once.
        return 2 * sum(map(_bytes, operands))
    if i.opcode != "fusion":
        return _bytes(i) + sum(map(_bytes, operands))
    inside = computations.get(i.called("calls") or "", {})
    aliased = _aliased(i)
    read = sum(
        min(_bytes(operand), _read(position, operand, inside))
        for position, operand in enumerate(operands)
        if position not in aliased.values()
    )
    return read + _written(i, inside, aliased)


def _aliased(i: hlo.Instruction) -> dict[int, int]:
    """Results of a fusion that are operands in place: what it only passes on."""
    found = re.search(r"output_to_operand_aliasing=\{(.*?\)\})?", i.attributes)
    pairs = re.findall(r"\{(\d*)\}: \((\d+), \{\}", found[0] if found else "")
    return {int(result or 0): int(operand) for result, operand in pairs}


def _bytes(i: hlo.Instruction) -> int:
    return sum(array.bytes for array in i.arrays if array.memory == 0)


def _sizes(i: hlo.Instruction) -> int:
    """As `_bytes`, wherever it is."""
    return sum(array.bytes for array in i.arrays)


def _read(position: int, operand: hlo.Instruction, inside) -> int:
    """What a fusion reads of an operand: only slices of it, or all."""
    parameter = next(
        (
            i
            for i in inside.values()
            if i.opcode == "parameter" and i.operands == (str(position),)
        ),
        None,
    )
    if parameter is None:
        return _bytes(operand)
    users = [i for i in inside.values() if parameter.name in i.operands]
    if not users:
        return 0
    total = 0
    for user in users:
        if user.opcode == "dynamic-slice":
            total += _sizes(user)
        elif user.opcode == "dynamic-update-slice" and user.operands[0] == (
            parameter.name
        ):
            continue  # written over in place
        else:
            return _bytes(operand)
    return total


def _written(i: hlo.Instruction, inside, aliased: dict[int, int]) -> int:
    """What a fusion writes: the slice that it replaces, or all of its results."""
    root = next((r for r in inside.values() if r.root), None)
    while root is not None and root.opcode in ("bitcast", "convert", "copy"):
        root = inside.get(root.operands[0])
    if root is not None and root.opcode == "dynamic-update-slice":
        update = inside.get(root.operands[1])
        return _sizes(update) if update is not None else _bytes(i)
    return sum(
        array.bytes
        for position, array in enumerate(i.arrays)
        if array.memory == 0 and position not in aliased
    )
