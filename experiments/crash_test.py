r"""Kills a run again and again at random moments, and compares its results with an undisturbed run.

  python -m experiments.crash_test --kills=50 --workdir=runs/crash_test

Each run of mhd train is a process that gets SIGKILL: half of the times at a random moment
between its start and its end; otherwise right after a save has begun, after a checkpoint or its
manifest has been written, after a line was added to the metrics, or after the report was begun. The
same command restarts the run until it ends; then another run begins, until there were enough kills.
State, history, summary (without times) and kept checkpoints of each run must equal those of the
undisturbed run, bit for bit; otherwise the exit status is 1. The folder gets crash_test.json.

With --signal=term the processes get SIGTERM instead. A process that has parsed its flags must then
end with status 130. As a stopped run saves a checkpoint, which counts among the latest ones, other
checkpoints may be kept, and these are not compared.
"""

from __future__ import annotations

import collections
import dataclasses
import json
import pathlib
import random
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from absl import flags

import mhd_jax as mhd
from mhd_jax.cli import launch
from mhd_jax.core.files import folder_here, make_folder
from mhd_jax.runs import manifest
from mhd_jax.runs.checkpoints import KEEP_LAST, Checkpoints
from mhd_jax.runs.finished import has_report
from mhd_jax.runs.records import read_json, write_json

_KILLS = flags.DEFINE_integer("kills", 50, "How many times a process is killed.", lower_bound=1)
_SIGNAL = flags.DEFINE_enum("signal", "kill", ["kill", "term"], "What kills it.")
_SEED = flags.DEFINE_integer("seed", 0, "Of the moments.")
_WORKDIR = flags.DEFINE_string("workdir", "runs/crash_test", "Folder of the test.")
_TRAIN = flags.DEFINE_string(
    "train_flags",
    "--algorithm=mhd --num_clients=4 --topology=ring --pool_size=2 --pool_refresh=7 "
    "--link_loss=0.1 --offline=0.2 --offline_steps=5 --on_nonfinite=quarantine "
    "--validation_fraction=0.1 --keep_best --steps=240 --eval_every=20 --checkpoint_every=30 "
    "--steps_per_dispatch=5",
    "Flags of the run, as for mhd train.",
)
_ROOT = pathlib.Path(__file__).parent.parent
_LONGEST = 600  # seconds that an undisturbed process may take
_SIGNALS = {"kill": signal.SIGKILL, "term": signal.SIGTERM}
_REFUSED = (1, 2)  # the exit statuses of mhd train for flags that cannot work
_WATCH = 0.002  # seconds between two checks of a process


class EndedError(Exception):
    """A process failed, or ended with a wrong status; what it said.

    Attributes:
      status: the exit status.
      said: its output.
    """

    def __init__(self, status: int, said: str):
        """Keeps both."""
        super().__init__(f"a process ended with {status}: {said[-3000:]}")
        self.status, self.said = status, said


@dataclasses.dataclass
class Folder:
    """A run folder, observed from another process."""

    path: pathlib.Path

    def saving(self) -> bool:
        """Returns whether a checkpoint is being written under a temporary name."""
        return any("tmp" in name for name in self._checkpoints())

    def unsealed(self) -> set[str]:
        """Returns the checkpoints that have their final name, but no manifest yet."""
        return {name for name in self._checkpoints() if name.isdecimal()} - self.sealed()

    def sealed(self) -> set[str]:
        """Returns the checkpoints with a manifest, without those that are being removed."""
        return set(map(str, Checkpoints(self.path / "checkpoints", KEEP_LAST).steps))

    def lines(self) -> int:
        """Returns the bytes of the metrics file."""
        metrics = self.path / "metrics.jsonl"
        return metrics.stat().st_size if metrics.exists() else 0

    def report_begun(self) -> bool:
        """Returns whether there are plots, but not yet the report of the finished run."""
        return any(self.path.glob("*.png")) and not has_report(self.path)

    def _checkpoints(self) -> list[str]:
        try:
            return [path.name for path in (self.path / "checkpoints").iterdir()]
        except FileNotFoundError:
            return []


def moments(folder: Folder) -> dict[str, Callable[[], bool]]:
    """Returns events by name, as functions of whether each has happened since this call."""
    lines, sealed = folder.lines(), folder.sealed()
    return {
        "a save has begun": folder.saving,
        "a checkpoint is in its place": lambda: bool(folder.unsealed()),
        "a checkpoint has its manifest": lambda: bool(folder.sealed() - sealed),
        "a line was added": lambda: folder.lines() > lines,
        "the report is begun": folder.report_begun,
    }


def _train_flags() -> list[str]:
    try:
        return shlex.split(_TRAIN.value)
    except ValueError as error:
        raise mhd.ConfigError(
            f"--train_flags cannot be read: {error}; close what is quoted."
        ) from error


def live(folder: Folder, cache: pathlib.Path, until: Callable[[], bool] | None) -> bool:
    """Runs one process of the run, killed once `until` returns True.

    Returns:
      Whether the process ended by itself.

    Raises:
      EndedError: the process failed, or ended with a wrong status.
    """
    command = [sys.executable, "-m", "mhd_jax", "train", *_train_flags()]
    command += [f"--workdir={folder.path}", f"--compilation_cache={cache}"]
    log = folder.path.with_suffix(".log")
    number, allowed = _SIGNALS[_SIGNAL.value], {0}
    with open(log, "wb") as output:
        process = subprocess.Popen(command, cwd=_ROOT, stdout=output, stderr=output)
        deadline = time.monotonic() + _LONGEST
        try:
            while process.poll() is None and time.monotonic() < deadline:
                if until is not None and until():
                    process.send_signal(number)
                    allowed |= {-number, 130}  # -number before the flags are parsed
                    process.wait(timeout=_LONGEST)
                    break
                time.sleep(_WATCH)
        finally:
            process.kill()
            process.wait()
    text = log.read_text()
    if process.returncode not in allowed or "Traceback" in text:
        raise EndedError(process.returncode, text)
    return process.returncode == 0


def outcome(folder: Folder) -> dict[str, Any]:
    """Returns all results of a finished run that must be reproduced."""
    for name in folder.sealed():
        if damage := manifest.damage(folder.path / "checkpoints" / name):
            raise RuntimeError(damage)
    lines = [json.loads(line) for line in (folder.path / "metrics.jsonl").read_text().splitlines()]
    summary = read_json(folder.path / "summary.json")
    del summary["timing"]
    return {
        "history": [{k: v for k, v in line.items() if k != "seconds"} for line in lines],
        "summary": summary,
        "checkpoints": sorted(folder.sealed()),
        "left over": sorted({*folder._checkpoints()} - folder.sealed()),
        "state": _arrays(folder.path / "checkpoints" / str(summary["steps"])),
    }


def _arrays(checkpoint: pathlib.Path) -> dict[str, tuple[Any, ...]]:
    """Returns shape, type and bytes of each array of a checkpoint, by name."""
    import jax
    import orbax.checkpoint as ocp

    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        tree = checkpointer.metadata(checkpoint.absolute()).item_metadata.tree
        as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
        found = checkpointer.restore(
            checkpoint.absolute(), args=ocp.args.PyTreeRestore(restore_args=as_numpy)
        )
    leaves, _ = jax.tree_util.tree_flatten_with_path(found)
    return {
        jax.tree_util.keystr(path): (leaf.shape, str(leaf.dtype), leaf.tobytes())
        for path, leaf in leaves
    }


def main() -> None:
    """Runs the test that the flags describe."""
    _train_flags()  # refused before a folder is made
    workdir = folder_here(_WORKDIR.value, "--workdir").absolute()
    if workdir.exists():
        raise mhd.ConfigError(f"{workdir} exists; choose another workdir, or delete it.")
    make_folder(workdir, "workdir")
    cache = workdir / "cache"
    console = launch.console()
    alone = Folder(workdir / "alone")
    begun = time.monotonic()
    try:
        live(alone, workdir / "cache of the run alone", None)
    except EndedError as error:
        if error.status not in _REFUSED:
            raise
        shutil.rmtree(workdir)  # so that the mended command finds nothing there
        why = error.said.splitlines()[-1].removeprefix("error: ")
        raise mhd.ConfigError(f"--train_flags: {why}") from error
    life = time.monotonic() - begun
    expected = outcome(alone)
    compared = expected.keys() - ({"checkpoints"} if _SIGNAL.value == "term" else set())
    draw = random.Random(_SEED.value)
    met: collections.Counter[str] = collections.Counter()
    kills, runs, unequal = 0, 0, []
    while kills < _KILLS.value:
        runs += 1
        folder, ended = Folder(workdir / f"run_{runs}"), False
        while not ended:
            moment, until = "left alone", None
            if kills < _KILLS.value:
                moment, until = _next_moment(folder, draw, life)
            began = time.monotonic()
            ended = live(folder, cache, until)
            if ended:  # a process with compiled programs or a late checkpoint takes less time
                life = min(life, time.monotonic() - began)
            if not ended:
                kills += 1
                met[moment] += 1
                console.print(f"kill {kills}: {moment}, {_progress(folder)}", markup=False)
        found = outcome(folder)
        differing = [name for name in sorted(compared) if found[name] != expected[name]]
        if differing:
            unequal.append({"run": runs, "differing": differing})
        else:
            shutil.rmtree(folder.path)
        console.print(
            f"run {runs} has ended: {', '.join(differing) or 'all'} "
            f"{'differs' if differing else 'equal'}",
            markup=False,
        )
    content = {
        "kills": kills,
        "by_moment": dict(met),
        "runs": runs,
        "unequal": unequal,
        "arrays": len(expected["state"]),
        "train_flags": _TRAIN.value,
        "seed": _SEED.value,
        "signal": _SIGNAL.value,
        "seconds": time.monotonic() - begun,
    }
    write_json(workdir / "crash_test.json", content)
    console.print(f"{kills} kills in {runs} run(s), {len(unequal)} of which differ", markup=False)
    if unequal:
        sys.exit(1)


def _next_moment(
    folder: Folder, draw: random.Random, life: float
) -> tuple[str, Callable[[], bool]]:
    """Draws when to kill the next process: a name, and a function of whether the time has come."""
    started = time.monotonic()
    if draw.random() < 0.5:
        at = started + draw.uniform(0, life)
        return "at a random time", lambda: time.monotonic() > at
    happened = moments(folder)
    name = draw.choice(sorted(happened))
    delay = draw.choice([0.0, draw.uniform(0, 0.1)])
    first: list[float] = []

    def until() -> bool:
        if not first and happened[name]():
            first.append(time.monotonic())
        return bool(first) and time.monotonic() >= first[0] + delay

    return name, until


def _progress(folder: Folder) -> str:
    """Describes a run's last checkpoint."""
    steps = sorted(map(int, folder.sealed()))
    return f"last checkpoint of step {steps[-1]}" if steps else "no checkpoint yet"


if __name__ == "__main__":
    launch.run(main)
