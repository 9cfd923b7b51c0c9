r"""Compares runs that have finished, or writes one run's report again.

  python -m experiments.report runs/a runs/b runs/compare --output=runs/report

A folder holds a run, or runs below it, like that of a comparison or a study; those that have not
finished are left out. Runs that differ in their seed alone become one row, a mean ± standard
deviation. The output folder gets table.json, table.md, plots and report.html, which says in what
settings the rows differ. One run's folder alone gets its own report.html and plots again.
"""

from __future__ import annotations

from collections.abc import Sequence

from absl import flags

import mhd_jax as mhd
from experiments import finished, launch
from experiments.comparison import rich_table
from mhd_jax.core.files import folder_here
from mhd_jax.runs import report

_OUTPUT = flags.DEFINE_string("output", "runs/report", "Folder of the comparison.")
flags.adopt_module_key_flags(launch)


def main(arguments: Sequence[str]) -> None:
    """Reports on the runs in the folders given."""
    if not arguments:
        raise mhd.ConfigError("name the folders of runs: experiments.report runs/a runs/b.")
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
        folder = runs[0].path
    else:
        folder = folder_here(_OUTPUT.value, "--output")
        rows = finished.compare(runs, folder)
        console.print(rich_table(rows, f"mean over clients, {len(runs)} runs"))
    launch.tell_report(folder)


if __name__ == "__main__":
    launch.run(main, takes_arguments=True)
