"""Reads the text of a compiled program: what it executes, how often, and what crosses devices.

The text lists computations of instructions. A loop names the computations of its condition and of its
body, each instruction of which is executed as often as the loop's trips.
"""

from __future__ import annotations

import collections
import dataclasses
import math
import re
from collections.abc import Iterator, Sequence

_COLLECTIVES = (
    "all-gather",
    "all-reduce",
    "all-to-all",
    "collective-permute",
    "ragged-all-to-all",
    "reduce-scatter",
)
_COMPUTATION = re.compile(r"(ENTRY )?%?([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"\s+(?:ROOT )?%?([\w.\-]+) = (.*)")
_OPCODE = re.compile(r" ?([a-z][\w\-]*)\((.*)")
_SHAPE = re.compile(r"([a-z]\w*)\[([\d,]*)\]")
_CALLED = re.compile(r"(?:calls|to_apply|true_computation|false_computation)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_KNOWN_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One instruction of a compiled program.

    Attributes:
      name: its name.
      opcode: what it does, like "fusion".
      result: the text of its result's type.
      details: its operands and attributes, as text.
      times: how often it is executed.
      fused: whether it is part of a fusion.
      loops_of_unknown_length: the loops around it whose trips are not known and count as one.
    """

    name: str
    opcode: str
    result: str
    details: str
    times: int = 1
    fused: bool = False
    loops_of_unknown_length: tuple[str, ...] = ()

    @property
    def cycles(self) -> int:
        """The compiler's estimate of all its executions, in cycles; 0 where it has none."""
        found = _CYCLES.search(self.details)
        return self.times * int(found[1]) if found else 0

    @property
    def source(self) -> str:
        """The operation of the traced program that it comes from, as a path; "" if unknown."""
        found = re.search(r'op_name="([^"]*)"', self.details)
        return found[1] if found else ""


@dataclasses.dataclass(frozen=True)
class Crossing:
    """Arrays of one shape that devices exchange in one way.

    Attributes:
      kind: the collective operation, like "all-gather".
      dtype, shape: of its result on one device.
      times: how many there are.
      received: the bytes that each device receives in all of them, in the least that it takes: a
        device that gathers has its own part already; a sum over devices takes two passes.
    """

    kind: str
    dtype: str
    shape: tuple[int, ...]
    times: int
    received: int


def executed(text: str) -> list[Instruction]:
    """Returns all instructions of a compiled program that are executed, with their times.

    Of a condition's branches, the one that the compiler estimates longest counts.
    """
    computations, entry = _parsed(text)

    def of(
        name: str, times: int, unknown: tuple[str, ...], fused: bool = False
    ) -> Iterator[Instruction]:
        for each in computations[name]:
            how = {"times": times, "fused": fused, "loops_of_unknown_length": unknown}
            yield dataclasses.replace(each, **how)  # type: ignore[arg-type]
            if each.opcode == "while":
                body, trips = _loop(each, computations)
                around = unknown if trips is not None else (*unknown, each.name)
                yield from of(body, times * (1 if trips is None else trips), around)
            elif each.opcode == "conditional":
                branches = [list(of(branch, times, unknown)) for branch in _called(each)]
                yield from max(branches, key=lambda branch: sum(i.cycles for i in branch))
            elif each.opcode in ("fusion", "call") or each.opcode.endswith("-start"):
                for called in _called(each):
                    yield from of(called, times, unknown, fused or each.opcode == "fusion")

    return list(of(entry, 1, ()))


def crossings(instructions: Sequence[Instruction], num_devices: int) -> list[Crossing]:
    """Returns what `num_devices` devices exchange, alike operations together, the most first.

    A TPU's compiler may take up one exchange in several fusions, during which it goes on; they name
    the same channel.
    """
    found: dict[tuple[str, str, tuple[int, ...]], list[int]] = collections.defaultdict(
        lambda: [0, 0]
    )
    channels = set()
    for each in instructions:
        kind = each.opcode.removesuffix("-start")
        channel = re.search(r"channel_id=(\d+)", each.details)
        if kind not in _COLLECTIVES or (each.fused and channel and channel[1] in channels):
            continue
        channels |= {channel[1]} if channel else set()
        share = _received_share(kind, _group_size(each.details, num_devices))
        for dtype, shape in _results(each):
            total = found[kind, dtype, shape]
            total[0] += each.times
            total[1] += round(each.times * share * _item_bytes(dtype) * math.prod(shape))
    made = [Crossing(*what, times, received) for what, (times, received) in found.items()]
    return sorted(made, key=lambda crossing: -crossing.received)


def _parsed(text: str) -> tuple[dict[str, list[Instruction]], str]:
    """Returns the instructions of each computation, and the name of the one that is the program."""
    computations: dict[str, list[Instruction]] = {}
    entry = current = ""
    for line in text.splitlines():
        heading = _COMPUTATION.match(line)
        instruction = _INSTRUCTION.match(line)
        if heading:
            current = heading[2]
            computations[current] = []
            entry = current if heading[1] else entry
        elif instruction and current:
            result, rest = _split_type(instruction[2])
            operation = _OPCODE.match(rest)
            if operation:
                computations[current].append(
                    Instruction(instruction[1], operation[1], result, operation[2])
                )
    return computations, entry


def _split_type(text: str) -> tuple[str, str]:
    """Splits an instruction at the end of its result's type, which may be a tuple of types."""
    depth = 0
    for place, character in enumerate(text):
        depth += (character in "({[") - (character in ")}]")
        if character == " " and depth == 0:
            return text[:place], text[place:]
    return text, ""


def _loop(loop: Instruction, computations: dict[str, list[Instruction]]) -> tuple[str, int | None]:
    """Returns the body of a loop and its number of trips, None if it is not a constant."""
    condition, body = (
        re.search(rf"{part}=%?([\w.\-]+)", loop.details)[1]  # type: ignore[index]
        for part in ("condition", "body")
    )
    known = _KNOWN_TRIPS.search(loop.details)
    if known:
        return body, int(known[1])
    # Loops count from 0, so that the constant that ends one is the number of its trips.
    constants = {
        each.name: int(each.details.partition(")")[0])
        for each in computations[condition]
        if each.opcode == "constant" and re.match(r"-?\d+\)", each.details)
    }
    for each in computations[condition]:
        if each.opcode == "compare" and "direction=LT" in each.details:
            operands = re.findall(r"%([\w.\-]+)", each.details.partition(")")[0])
            return body, next((constants[name] for name in operands if name in constants), None)
    return body, None


def _called(instruction: Instruction) -> list[str]:
    """Returns the names of the computations that an instruction executes."""
    branches = _BRANCHES.search(instruction.details)
    if branches:
        return [name.strip().lstrip("%") for name in branches[1].split(",")]
    return _CALLED.findall(instruction.details)


def _results(collective: Instruction) -> list[tuple[str, tuple[int, ...]]]:
    """Returns types and shapes of what a collective operation gives each device."""
    found = [
        (dtype, tuple(int(n) for n in dims.split(",") if n))
        for dtype, dims in _SHAPE.findall(collective.result)
    ]
    if collective.opcode == "all-gather-start":  # operands, then results
        return found[len(found) // 2 :]
    return found[1:2] if collective.opcode == "collective-permute-start" else found


def _group_size(details: str, num_devices: int) -> int:
    """Returns how many devices take part together in a collective operation."""
    listed = re.search(r"replica_groups=\{\{([\d,]+)\}", details)
    if listed:
        return len(listed[1].split(","))
    counted = re.search(r"replica_groups=\[\d+,(\d+)\]", details)
    if counted:
        return int(counted[1])
    named = re.search(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}", details)
    if named:
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", named[1]))
        return math.prod(int(sizes[axis]) for axis in re.findall(r"'(\w+)'", named[2]))
    return num_devices


def _received_share(kind: str, devices: int) -> float:
    """Returns the bytes that each of some devices receives, over those of its result."""
    others = devices - 1
    shares = {"collective-permute": 1.0, "reduce-scatter": float(others)}
    shares["all-reduce"] = 2 * others / devices
    return shares.get(kind, others / devices)


def _item_bytes(dtype: str) -> int:
    bits = re.search(r"\d+", dtype)  # pred has none, but takes a byte
    return max(1, int(bits[0]) // 8) if bits else 1
