r"""Trains clients that learn from each other, and reports the accuracy of each.

  mhd train --algorithm=mhd --dataset=digits --num_clients=8 \
      --topology=ring --labels_per_client=2 --skew=100 --steps=2000 --workdir=runs/mhd

The run folder (--workdir; by default each setting has its own) gets the settings, the metrics, the
checkpoints, the plots and report.html, which is there from the start and says how far the run is.
The same command again resumes an interrupted run. --flagfile=FILE reads flags from a file, one a
line. --dry_run tells what the run would take, and trains nothing.
"""

from __future__ import annotations

import pathlib
import sys

from absl import flags

from mhd_jax.cli import algorithm_flag, dry_run, json_flag, launch, run_record, watching, workdirs
from mhd_jax.cli import flags as run_flags
from mhd_jax.core import multihost
from mhd_jax.engine.dry_run import dry_run as what_it_would_take
from mhd_jax.engine.host import HostSettings
from mhd_jax.engine.result import Result
from mhd_jax.engine.run import Run
from mhd_jax.runs.callbacks import LiveReport
from mhd_jax.runs.finished import has_report
from mhd_jax.studies import tables

flags.adopt_module_key_flags(algorithm_flag)
_DRY_RUN = flags.DEFINE_bool(
    "dry_run",
    False,
    "Whether to tell what the run would take (settings, shapes, parameters, memory, operations, "
    "bytes sent) instead of training; no folder is written.",
)
flags.adopt_module_key_flags(run_flags)
flags.adopt_module_key_flags(json_flag)
flags.adopt_module_key_flags(launch)


def main() -> None:
    """Trains the run that the flags describe."""
    algorithm = algorithm_flag.value()
    settings = run_flags.settings()
    workdir = workdirs.chosen(algorithm.name, settings.topology)
    watchers = [LiveReport(), *watching.watchers()]
    if _DRY_RUN.value:
        run = settings.prepared(algorithm, flags.FLAGS.seed, watchers)
        _run_dry(run, settings.eval_every, workdir)
        return
    if workdirs.overwrites():
        settings.check(algorithm, flags.FLAGS.seed, watchers)  # before anything is lost
        workdirs.make_room(workdir, [settings.continue_from])
    finished, reported = (workdir / "summary.json").exists(), has_report(workdir)
    (result,) = settings.simulate(algorithm, [flags.FLAGS.seed], [workdir], watchers)
    vain = watching.in_vain(result.summary.get("metrics", ())) if finished else None
    if vain and multihost.is_main():
        print(f"note: {vain}", file=sys.stderr)

    if json_flag.asked():
        json_flag.say(run_record.record(workdir))
        return
    if finished:
        done = "nothing was changed" if reported else "only its report was missing"
        launch.say(f"{workdir} holds this run, finished; {done}.", alone=False)
    elif result.started_at:
        launch.say(f"resumed at step {result.started_at}", alone=False)
    _show(result, workdir)


def _show(result: Result, workdir: pathlib.Path) -> None:
    """Prints the accuracies of a run, and where its report is."""
    from mhd_jax.runs import report  # imported late, as matplotlib is slow to import

    console = launch.console()
    summary = result.summary
    if summary["status"] == "stopped":
        asked, reason = summary["settings"]["steps"], summary["stopped_because"]
        console.print(f"stopped at step {summary['steps']} of {asked}: {reason}", markup=False)
    lines = [
        [head, f"{value:.3f}", "–" if own is None else f"{own:.3f}"]
        for head, value, own in report.accuracy_lines(summary)
    ]
    title = f"{summary['algorithm']}, mean over clients"
    console.print(tables.rich(("head", "β_sh", "β_priv"), lines, title))
    if "targets" in summary["data"]:
        console.print("Scores are shares of the targets' variance that predictions explain.")
    launch.tell_report(workdir)


def _run_dry(run: Run, eval_every: int, workdir: pathlib.Path) -> None:
    """Tells what a run would take; refused is what would be, also because of its folder."""
    if not workdirs.overwrites():
        HostSettings(workdirs=[workdir]).folders([run])
    found = what_it_would_take(run, eval_every, saves=True)
    if json_flag.asked():
        json_flag.say({"folder": str(workdir), **found})
    else:
        launch.say("\n".join([f"folder: {workdir}", *dry_run.lines(found)]), alone=False)


def start() -> None:
    """Starts the command on the arguments of this process."""
    launch.run(main, several_processes=True)
