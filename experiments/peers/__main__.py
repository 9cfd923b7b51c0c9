"""Races this package against others on the same work: each side works while the other is stopped.

  python -m venv build/torch && build/torch/bin/pip install torch blazefl numpy tqdm  # Python 3.12 or later
  python -m venv build/fedjax && build/fedjax/bin/pip install fedjax "jax[cpu]"
  python -m experiments.peers --interpreters=build/torch/bin/python,build/fedjax/bin/python

A peer runs in the first interpreter that can import it, as a process of its own; so does this
package. Each pair of turns gives a ratio of times; the table has their median and quartiles, what
each side takes from its start until its first work is done, and its memory. Peers that no
interpreter has are named, and left out.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import psutil
from absl import flags

import mhd_jax as mhd
from experiments import speed, timing
from experiments.timing import Processors, Ratio
from mhd_jax.cli import launch
from mhd_jax.core.files import file_here
from mhd_jax.runs.records import write_json
from mhd_jax.studies import tables

_HERE = pathlib.Path(__file__).parent
_HEADINGS = (
    *("peer", "work of a turn", "peer, s", "own, s", "peer / own", "first work, s", "memory, MB"),
    "others",
)

_INTERPRETERS = flags.DEFINE_list(
    "interpreters", [sys.executable], "Pythons that have the peers installed."
)
_TURNS = flags.DEFINE_integer("turns", 11, "How many pairs of turns each race has.", lower_bound=1)
_FILE = flags.DEFINE_string("races", None, "File for the table as JSON.")


@dataclasses.dataclass(frozen=True)
class Race:
    """Work that a peer and this package do in turns.

    Attributes:
      peer: the peer's script, without its ending.
      needs: what an interpreter must be able to import.
      own: the function in `own.py` that does the same.
      work: what a turn is.
    """

    peer: str
    needs: str
    own: str
    work: str


RACES = (
    Race(
        "torch_fedmd",
        "torch",
        "fedmd_cnn",
        "10 CNNs of 62,006 parameters, 20 rounds of a distillation step and a training step of 50",
    ),
    Race("fedjax_fedavg", "fedjax", "fedavg_mlp", "64 MLPs of 199,210 parameters, 10 steps of 32"),
    Race("blazefl_fedavg", "blazefl", "fedavg_cnn", "10 such CNNs, 2 rounds of 10 steps of 50"),
)


class EndedError(Exception):
    """A side ended by itself; what it said last."""


class Side:
    """A process that works when told to and is stopped in between.

    Attributes:
      versions: those of the packages that decide its speed.
      first: seconds from the process's start until its first work was done.
    """

    def __init__(self, command: Sequence[str], said: Any):
        start = time.perf_counter()
        self._said = said
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=said,
            text=True,
            start_new_session=True,
        )
        try:
            self.versions: dict[str, str] = self._answer()["versions"]
        except BaseException:
            self.end()
            raise
        self.first = time.perf_counter() - start
        self._stop()

    def turn(self) -> float:
        """Returns the seconds of one piece of work."""
        self._signal(signal.SIGCONT)
        self._process.stdin.write("\n")  # type: ignore[union-attr]
        self._process.stdin.flush()  # type: ignore[union-attr]
        seconds = self._answer()["seconds"]
        self._stop()
        return seconds

    def megabytes(self) -> float:
        """Returns the memory of the process and its children; what they share counts once."""
        return sum(each.memory_full_info().pss for each in self._processes()) / 1e6

    def processor_seconds(self) -> float:
        """Returns what the process and its children have used of the processors so far."""
        return sum(sum(each.cpu_times()[:4]) for each in self._processes())

    def end(self) -> None:
        """Ends the process and its children."""
        with contextlib.suppress(ProcessLookupError):
            self._signal(signal.SIGKILL)
        self._process.wait()

    def _processes(self) -> list[psutil.Process]:
        own = psutil.Process(self._process.pid)
        return [own, *own.children(recursive=True)]

    def _stop(self) -> None:
        """Stops the process and its children, and waits until its threads stand still."""
        self._signal(signal.SIGSTOP)
        os.waitid(os.P_PID, self._process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)

    def _signal(self, number: int) -> None:
        os.killpg(self._process.pid, number)

    def _answer(self) -> dict[str, Any]:
        line = self._process.stdout.readline()  # type: ignore[union-attr]
        if not line:
            self._said.seek(0)
            raise EndedError(self._said.read()[-2000:])
        return json.loads(line)


@contextlib.contextmanager
def _side(*command: str) -> Iterator[Side]:
    with tempfile.TemporaryFile("w+") as said:
        side = Side(command, said)
        try:
            yield side
        finally:
            side.end()


def race(of: Race, interpreter: str, turns: int) -> dict[str, Any]:
    """Returns the times of both sides of a race, alternating, and what else is told of them."""
    with (
        _side(interpreter, str(_HERE / f"{of.peer}.py")) as peer,
        _side(sys.executable, "-m", "experiments.peers.own", of.own) as own,
    ):
        sides = {"peer": peer, "own": own}
        before = _processors(sides.values())
        seconds = [[side.turn() for side in sides.values()] for _ in range(turns)]
        measured = {
            "first_work_seconds": {name: side.first for name, side in sides.items()},
            "megabytes": {name: side.megabytes() for name, side in sides.items()},
            "versions": {**peer.versions, **own.versions},
        }
        others = _processors(sides.values()).others_since(before)
    times = np.asarray(seconds)
    ratio = Ratio.of(times[:, 0], times[:, 1])
    return {
        **dataclasses.asdict(of),
        "seconds": dict(zip(sides, np.median(times, axis=0).tolist(), strict=True)),
        "ratio": ratio.value,
        "spread": ratio.spread,
        **measured,
        "others": others,
        "disturbed": timing.disturbed(ratio, others),
    }


def _processors(sides: Iterable[Side]) -> Processors:
    """Returns the machine's seconds so far, with those of the sides as this program's own."""
    now = Processors.now()
    return dataclasses.replace(now, own=now.own + sum(side.processor_seconds() for side in sides))


def _interpreter_with(package: str) -> str | None:
    """Returns the first of the given Pythons that can import a package."""
    for each in _INTERPRETERS.value:
        try:
            tried = subprocess.run([each, "-c", f"import {package}"], capture_output=True)
        except OSError as error:
            raise mhd.ConfigError(
                f"--interpreters: {each!r} cannot be started ({error.strerror})."
            ) from error
        if tried.returncode == 0:
            return each
    return None


def _cells(found: Mapping[str, Any]) -> list[str]:
    pair = lambda each, form: " / ".join(form.format(each[side]) for side in ("peer", "own"))  # noqa: E731
    return [
        found["peer"],
        found["work"],
        *(f"{found['seconds'][side]:.3f}" for side in ("peer", "own")),
        f"{found['ratio']:.2f} ({found['spread'][0]:.2f}–{found['spread'][1]:.2f})",
        pair(found["first_work_seconds"], "{:.1f}"),
        pair(found["megabytes"], "{:.0f}"),
        f"{found['others']:.0%}{', disturbed' if found['disturbed'] else ''}",
    ]


def main() -> None:
    """Runs the races whose peers are there, and prints their table."""
    path = file_here(_FILE.value, "--races") if _FILE.value else None
    found: list[dict[str, Any]] = []
    for each in RACES:
        interpreter = _interpreter_with(each.needs)
        if interpreter is None:
            launch.console().print(f"{each.peer}: no interpreter can import {each.needs}.")
            continue
        try:
            found.append(race(each, interpreter, _TURNS.value))
        except EndedError as error:
            launch.console().print(f"{each.peer} failed:\n{error}", markup=False)
            continue
        if path is not None:
            write_json(path, {"machine": speed.machine(), "races": found})
    if not found:
        raise mhd.ConfigError(
            "no race was run: name Pythons that have a peer by --interpreters "
            "(see the top of experiments/peers/__main__.py)."
        )
    lines = [_cells(each) for each in found]
    launch.console().print(tables.rich(_HEADINGS, lines, speed.machine()))


if __name__ == "__main__":
    launch.run(main, computes=False)
