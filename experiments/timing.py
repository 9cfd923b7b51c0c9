"""Times of alternating calls, ratios of times, and the load of other programs meanwhile."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
import psutil

_MOST_OF_OTHERS = 0.1  # the share of the machine's processors
_WIDEST_SPREAD = 0.2  # the distance of the quartiles over the median


@dataclasses.dataclass(frozen=True)
class Times:
    """Seconds of calls that were timed in turn, [repetitions, calls].

    Attributes:
      clock: the time from a call's start to its end.
      processors: the processor time of all threads of this process meanwhile.
    """

    clock: np.ndarray
    processors: np.ndarray

    def ratio(self, above: int = 0, below: int = 1) -> Ratio:
        """Returns the ratio of one call's clock times to another's, by their places."""
        return Ratio.of(self.clock[:, above], self.clock[:, below])

    def medians(self) -> list[float]:
        """Returns the median clock time of each call."""
        return [float(seconds) for seconds in np.median(self.clock, axis=0)]

    def cores(self) -> list[float]:
        """Returns the median number of processors that each call kept busy."""
        return [float(cores) for cores in np.median(self.processors / self.clock, axis=0)]


@dataclasses.dataclass(frozen=True)
class Ratio:
    """The median of ratios, and their quartiles."""

    value: float
    spread: tuple[float, float]

    @classmethod
    def of(cls, above: np.ndarray, below: np.ndarray) -> Ratio:
        """Returns the median and the quartiles of the pairs' ratios above / below."""
        low, middle, high = np.quantile(np.asarray(above) / np.asarray(below), (0.25, 0.5, 0.75))
        return cls(float(middle), (float(low), float(high)))


def in_turn(
    *calls: Callable[[], Any], repetitions: int = 9, steps: int | Sequence[int] = 1
) -> Times:
    """Times calls in turn, so that the machine's drift affects all calls alike.

    Args:
      *calls: what to time.
      repetitions: how often.
      steps: the steps that each call takes, or all; times are those of one step.
    """
    for call in calls:
        jax.block_until_ready(call())
    times = np.zeros((2, repetitions, len(calls)))
    for repetition in range(repetitions):
        for place, call in enumerate(calls):
            clock, processors = time.perf_counter(), time.process_time()
            jax.block_until_ready(call())
            times[0, repetition, place] = time.perf_counter() - clock
            times[1, repetition, place] = time.process_time() - processors
    return Times(*(times / np.asarray(steps)))


@dataclasses.dataclass(frozen=True)
class Processors:
    """Processor seconds of the machine so far: in total, idle, and of this program."""

    all: float
    idle: float
    own: float

    @classmethod
    def now(cls) -> Processors:
        """Returns the seconds until now; `own` includes this program's finished children."""
        machine, own = psutil.cpu_times(), os.times()
        counted = {name: value for name, value in machine._asdict().items() if "guest" not in name}
        idle = machine.idle + getattr(machine, "iowait", 0.0)
        return cls(sum(counted.values()), idle, sum(own[:4]))

    def others_since(self, before: Processors) -> float:
        """Returns the share of other programs since `before`, with a hypervisor's steal time."""
        whole = self.all - before.all
        rest = whole - (self.idle - before.idle) - (self.own - before.own)
        return min(max(rest / whole, 0.0), 1.0) if whole > 0 else 0.0


def disturbed(ratio: Ratio | None, others: float) -> bool:
    """Returns whether others' load or the spread is too large to trust a measurement."""
    wide = ratio is not None and (
        ratio.spread[1] - ratio.spread[0] > _WIDEST_SPREAD * abs(ratio.value)
    )
    return others > _MOST_OF_OTHERS or wide
