r"""Tests a long run for growth of memory, arrays, threads, open files and compiled programs.

  python -m experiments.endurance --steps=20000 --pool_size=2 --link_loss=0.1 \
      --on_nonfinite=quarantine --validation_fraction=0.1 --keep_best --workdir=runs/endurance

Trains like experiments.train with the same flags, and counts at every evaluation what the process
holds. Counts vary between evaluations, as a save may be in progress, but their median in the run's
last quarter must not exceed that in its second; otherwise the exit status is 1. The folder gets
endurance.json with all counts, endurance.md, .png and .svg.
"""

from __future__ import annotations

import dataclasses
import gc
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
import psutil
from absl import flags

import mhd_jax as mhd
from mhd_jax.cli import algorithm_flag, launch, watching, workdirs
from mhd_jax.cli import flags as run_flags
from mhd_jax.cli.commands import train
from mhd_jax.core import shown
from mhd_jax.core.files import folder_here
from mhd_jax.engine import memory
from mhd_jax.engine import steps as engine
from mhd_jax.runs import drawing
from mhd_jax.runs.checkpoints import KEEP_LAST, Checkpoints
from mhd_jax.runs.drawing import Figure
from mhd_jax.runs.records import write_json, write_text
from mhd_jax.studies import tables

flags.adopt_module_key_flags(train)

_FEWEST = 8  # evaluations needed to detect growth


@dataclasses.dataclass(frozen=True)
class Counts:
    """Counts of the process's resources after an evaluation.

    Attributes:
      step: the run's step.
      resident_bytes: the process's resident memory.
      arrays, array_bytes: number and bytes of live JAX arrays.
      threads, open_files: the process's threads and open files.
      programs: the number of compiled dispatch programs.
    """

    step: int
    resident_bytes: int
    arrays: int
    array_bytes: int
    threads: int
    open_files: int
    programs: int


class Watch(mhd.Callback):
    """A callback that counts the process's resources at every evaluation."""

    def __init__(self) -> None:
        """Starts with an empty list of counts."""
        self.counts: list[Counts] = []
        self._process = psutil.Process()

    def on_evaluation(self, record: Mapping[str, Any], view: mhd.callbacks.WatchedRun) -> None:
        """Counts the resources after a garbage collection."""
        gc.collect()
        alive = jax.live_arrays()
        self.counts.append(
            Counts(
                step=record["step"],
                resident_bytes=self._process.memory_info().rss,
                arrays=len(alive),
                array_bytes=memory.num_bytes(alive),
                threads=self._process.num_threads(),
                open_files=self._process.num_fds(),
                programs=engine.dispatch._cache_size(),  # type: ignore[attr-defined]
            )
        )


def medians(counts: Sequence[Counts]) -> dict[str, tuple[float, float]]:
    """Returns, by name, the median counts in the second and in the last quarter of a run."""
    quarter = len(counts) // 4
    names = [field.name for field in dataclasses.fields(Counts) if field.name != "step"]

    def typical(name: str, some: Sequence[Counts]) -> float:
        return float(np.median([getattr(count, name) for count in some]))

    second, last = counts[quarter : 2 * quarter], counts[-quarter:]
    return {name: (typical(name, second), typical(name, last)) for name in names}


def grown(counts: Sequence[Counts]) -> list[str]:
    """Returns the names of counts that have grown, without resident memory, which is inexact."""
    found = medians(counts)
    return [n for n, (then, now) in found.items() if now > then and n != "resident_bytes"]


def slope(counts: Sequence[Counts]) -> float:
    """Returns the growth of resident memory in bytes per 1,000 steps, over the second half."""
    half = counts[len(counts) // 2 :]
    return float(1000 * np.polyfit([c.step for c in half], [c.resident_bytes for c in half], 1)[0])


def figure(counts: Sequence[Counts]) -> Figure:
    """Plots memory and the other counts over the steps."""
    plot = Figure(figsize=(10, 3.4), layout="constrained")
    left, right = plot.subplots(1, 2)
    steps = [c.step for c in counts]
    left.plot(steps, [c.resident_bytes / 1e6 for c in counts], label="resident")
    left.plot(steps, [c.array_bytes / 1e6 for c in counts], label="in JAX's arrays")
    left.set_ylabel("MB")
    for name in ("arrays", "threads", "open_files", "programs"):
        right.plot(steps, [getattr(c, name) for c in counts], label=name.replace("_", " "))
    right.set_yscale("log")
    right.set_ylim(1, 10 * max(c.arrays for c in counts))  # room for the legend
    right.set_ylabel("number")
    for axis in (left, right):
        axis.set_xlabel("step")
        axis.grid(alpha=0.3)
    left.legend()
    right.legend(ncols=2, loc="upper right")
    left.set_ylim(bottom=0)
    return plot


def main() -> None:
    """Trains by the flags, counts, and exits with status 1 if a count has grown."""
    for name in ("dry_run", "json"):
        if flags.FLAGS[name].value:
            raise mhd.ConfigError(f"--{name} is for mhd train; leave it out.")
    algorithm, settings = algorithm_flag.value(), run_flags.settings()
    workdir = folder_here(flags.FLAGS.workdir or "runs/endurance", "--workdir")
    watch, seed = Watch(), flags.FLAGS.seed
    callbacks = [watch, *watching.watchers()]
    steps = settings.prepared(algorithm, seed, callbacks).steps
    kept = [] if workdirs.overwrites() else Checkpoints(workdir / "checkpoints", KEEP_LAST).steps
    begun = max(kept, default=0)
    evaluations = -(-steps // settings.eval_every) - begun // settings.eval_every
    if evaluations < _FEWEST:
        there = f", of those left after step {begun} in {workdir}," if begun else ""
        raise mhd.ConfigError(
            f"{shown.counted(evaluations, 'evaluation')}{there} cannot tell growth; take more steps or a "
            f"lower eval_every for {_FEWEST} or more{', or a new workdir' if begun else ''}."
        )
    workdirs.make_room(workdir, [settings.continue_from])
    settings.simulate(algorithm, [seed], [workdir], callbacks)
    if len(watch.counts) < _FEWEST:
        raise mhd.ConfigError(
            f"the run has stopped after {shown.counted(len(watch.counts), 'evaluation')}, which cannot "
            f"tell growth; let it go on for {_FEWEST} or more, in a new workdir or with --overwrite."
        )
    found, more = medians(watch.counts), grown(watch.counts)
    content = {
        "counts": [dataclasses.asdict(count) for count in watch.counts],
        "medians_of_second_and_last_quarter": found,
        "grown": more,
        "resident_bytes_per_1000_steps": slope(watch.counts),
    }
    write_json(workdir / "endurance.json", content)
    drawing.save_figure(lambda: figure(watch.counts), workdir / "endurance")
    console = launch.console()
    headings = ["median", "second quarter", "last quarter"]
    lines = [[name.replace("_", " "), f"{a:,.0f}", f"{b:,.0f}"] for name, (a, b) in found.items()]
    write_text(workdir / "endurance.md", tables.markdown(headings, lines))
    console.print(tables.rich(headings, lines))
    console.print(
        f"resident memory: {slope(watch.counts) / 1e3:+.1f} kB in 1,000 steps; "
        f"grown: {', '.join(more) or 'nothing'}",
        markup=False,
    )
    if more:
        sys.exit(1)


if __name__ == "__main__":
    launch.run(main)
