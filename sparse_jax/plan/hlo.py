"""Reads the text of a compiled program: computations, loops, sizes.

XLA prints one instruction a line, `%name = type opcode(%operand, ...), attributes`,
inside computations that loops and fusions call. Its own cost analysis counts the body
of a loop once; here every computation carries how often it runs.
"""

import dataclasses
import math
import re
from collections.abc import Iterator

_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_NAME = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = ")
_OPCODE = re.compile(r"^([\w\-]+)\(")
_ARRAY = re.compile(r"\b([a-z]\w*)\[([\d,]*)\](\{[^{}]*\})?")
_BITS = re.compile(r"^[a-z]+(\d+)")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Array:
    """One array of a type.

    Attributes:
      bytes: without padding.
      memory: 0 = main memory; others are on the chip.
    """

    bytes: int
    memory: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Instruction:
    """One line.

    Attributes:
      name: unique in its computation.
      type: of the result, as XLA writes it.
      opcode: such as "all-gather-start".
      operands: names.
      attributes: what stands after the operands.
      root: whether it is the result of its computation.
    """

    name: str
    type: str
    opcode: str
    operands: tuple[str, ...]
    attributes: str
    root: bool

    def called(self, attribute: str) -> str | None:
        """The computation that an attribute such as `calls` or `body` names."""
        match = re.search(rf"\b{attribute}=%?([\w.\-]+)", self.attributes)
        return match[1] if match else None

    @property
    def arrays(self) -> list[Array]:
        """Of the result, a tuple's in order."""
        return arrays(self.type)


Computations = dict[str, dict[str, Instruction]]
"""Name -> instruction name -> instruction."""


def arrays(text: str) -> list[Array]:
    """The arrays that a type names.

    Example:
      >>> [a.bytes for a in arrays("(bf16[2,8]{1,0:T(8,128)(2,1)S(1)}, pred[])")]
      [32, 1]
    """
    found = []
    for kind, shape, layout in _ARRAY.findall(text):
        bits = 8 if kind == "pred" else int((_BITS.match(kind) or [0, 0])[1])
        count = math.prod(int(n) for n in shape.split(",") if n)
        memory = re.search(r"S\((\d)\)", layout)
        found.append(
            Array(bytes=-(-count * bits // 8), memory=int(memory[1]) if memory else 0)
        )
    return found


def parse(text: str) -> tuple[Computations, str]:
    """The computations of a module, and the name of the one that it starts with."""
    computations: Computations = {}
    entry, current = "", None
    # A kernel's configuration may hold lines of its own, with a brace at their start:
    # a computation ends where the next one begins.
    for line in text.splitlines():
        if header := _HEADER.match(line):
            current = computations.setdefault(header[2], {})
            entry = header[2] if header[1] else entry
        elif current is not None and (name := _NAME.match(line)):
            instruction = _instruction(name, line[name.end() :])
            if instruction is not None:
                current[instruction.name] = instruction
    return computations, entry


def _instruction(name: re.Match, rest: str) -> Instruction | None:
    kind, rest = _split_type(rest)
    opcode = _OPCODE.match(rest)
    if opcode is None:
        return None
    end = _closing(rest, opcode.end() - 1)
    operands = rest[opcode.end() : end]
    if opcode[1] in ("constant", "parameter"):
        names: tuple[str, ...] = (operands,)
    else:
        names = tuple(re.findall(r"%([\w.\-]+)", operands))
    return Instruction(
        name=name[2],
        type=kind,
        opcode=opcode[1],
        operands=names,
        attributes=rest[end + 1 :],
        root=name[1] is not None,
    )


def _split_type(text: str) -> tuple[str, str]:
    end = _closing(text, 0) + 1 if text.startswith("(") else text.find(" ")
    return text[:end], text[end:].lstrip()


def _closing(text: str, start: int) -> int:
    """Where the parenthesis that opens at `start` closes."""
    depth = 0
    for match in re.finditer(r"[()]", text[start:]):
        depth += 1 if match[0] == "(" else -1
        if depth == 0:
            return start + match.start()
    return len(text)


def trip_count(loop: Instruction, computations: Computations) -> int | None:
    """How often a `while` runs its body, where the program says so.

    XLA notes it for CPU and GPU; for TPU it is the one constant that the condition
    compares the counter with, which `lax.scan` starts at 0.
    """
    if known := re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.attributes):
        return int(known[1])
    condition = computations.get(loop.called("condition") or "", {})
    limits = [
        int(i.operands[0])
        for i in condition.values()
        if i.opcode == "constant" and i.operands[0].lstrip("-").isdigit()
    ]
    below = any("direction=LT" in i.attributes for i in condition.values())
    return limits[0] if below and len(limits) == 1 else None


def executions(
    computations: Computations, entry: str
) -> Iterator[tuple[Instruction, str, int, bool]]:
    """Every instruction, as often as a program holds it.

    Yields:
      The instruction; the computation it stands in, or that its fusion stands in; how
      often it runs; whether it is inside a fusion. A loop of unknown length counts as
      one run.
    """

    def walk(name: str, owner: str, times: int, fused: bool):
        for i in computations.get(name, {}).values():
            yield i, owner, times, fused
            if i.opcode == "while":
                trips = trip_count(i, computations) or 1
                body = i.called("body") or ""
                yield from walk(body, body, times * trips, False)
            elif i.opcode == "fusion" or i.opcode.startswith("async-start"):
                yield from walk(i.called("calls") or "", owner, times, True)
            elif i.opcode == "call":
                called = i.called("to_apply") or ""
                yield from walk(called, called, times, False)
            elif i.opcode == "conditional":
                for branch in re.findall(r"%([\w.\-]+)", i.attributes):
                    yield from walk(branch, branch, times, False)

    yield from walk(entry, entry, 1, False)
