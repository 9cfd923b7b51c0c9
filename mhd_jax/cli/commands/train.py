r"""Trains clients that learn from each other, and reports the accuracy of each.

  mhd train --algorithm=mhd --dataset=digits --num_clients=8 \
      --topology=ring --labels_per_client=2 --skew=100 --steps=2000 --workdir=runs/mhd

The run folder (--workdir) gets the settings, the metrics, the checkpoints, the plots and
report.html. The same command again resumes an interrupted run. --flagfile=FILE reads flags from a
file, one a line.
"""

from __future__ import annotations

from absl import flags
from rich.table import Table

from mhd_jax.cli import algorithm_flag, launch, watching
from mhd_jax.cli import flags as run_flags
from mhd_jax.core.files import folder_here

flags.adopt_module_key_flags(algorithm_flag)
flags.adopt_module_key_flags(run_flags)
flags.adopt_module_key_flags(launch)


def main() -> None:
    """Trains the run that the flags describe."""
    algorithm = algorithm_flag.value()
    settings = run_flags.settings()
    workdir = folder_here(flags.FLAGS.workdir or f"runs/{algorithm.name}", "--workdir")
    finished, reported = ((workdir / n).exists() for n in ("summary.json", "report.html"))
    (result,) = settings.simulate(algorithm, [flags.FLAGS.seed], [workdir], watching.watchers())

    from mhd_jax.runs import report  # imported late, as matplotlib is slow to import

    console = launch.console()
    summary = result.summary
    if finished:
        done = "nothing was changed" if reported else "only its report was missing"
        console.print(f"{workdir} holds this run, finished; {done}.", markup=False)
    elif result.started_at:
        console.print(f"resumed at step {result.started_at}")
    if summary["status"] == "stopped":
        asked, reason = summary["settings"]["steps"], summary["stopped_because"]
        console.print(f"stopped at step {summary['steps']} of {asked}: {reason}", markup=False)
    table = Table("head", "β_sh", "β_priv", title=f"{algorithm.name}, mean over clients")
    for head, value, own in report.accuracy_lines(summary):
        table.add_row(head, f"{value:.3f}", "–" if own is None else f"{own:.3f}")
    console.print(table)
    launch.tell_report(workdir)


def start() -> None:
    """Starts the command on the arguments of this process."""
    launch.run(main, several_processes=True)
