r"""Compares finished runs, or writes one run's report again.

  mhd report runs/a runs/b runs/compare --output=runs/report

A folder holds a run, or several runs below it, like that of a comparison or a study; unfinished
runs are left out. Runs that differ only in their seed become one row, a mean ± standard deviation.
The output folder gets table.json, table.md, plots and report.html, which shows the settings in
which the rows differ. With the folder of a single run, this run's report.html and plots are written
again.
"""

from __future__ import annotations

from collections.abc import Sequence

from absl import flags

import mhd_jax as mhd
from mhd_jax.cli import comparison, finished, launch
from mhd_jax.core.commands import named
from mhd_jax.core.files import folder_here
from mhd_jax.runs import report

_OUTPUT = flags.DEFINE_string("output", "runs/report", "Folder of the comparison.")
flags.adopt_module_key_flags(launch)


def main(arguments: Sequence[str]) -> None:
    """Writes the report on the runs in the given folders."""
    if not arguments:
        raise mhd.ConfigError(f"name the folders of runs: {named('report')} runs/a runs/b.")
    runs, others = finished.read([folder_here(argument, "folder") for argument in arguments])
    console = launch.console()
    if others:
        names = ", ".join(map(str, others))
        console.print(f"left out, for it has not finished: {names}", markup=False, soft_wrap=True)
    if len(runs) + len(others) == 1:
        if flags.FLAGS["output"].present:
            raise mhd.ConfigError(
                "one run's report is written into its own folder; leave --output out, or name more "
                "runs."
            )
        report.write(runs[0])
        launch.tell_report(runs[0].path)
    else:
        folder = folder_here(_OUTPUT.value, "--output")
        rows = finished.compare(runs, folder)
        comparison.show(rows, f"mean over clients, {len(runs)} runs", folder, finished.notes(runs))


def start() -> None:
    """Starts the command on the arguments of this process."""
    launch.run(main, takes_arguments=True)
