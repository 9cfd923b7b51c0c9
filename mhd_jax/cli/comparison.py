"""Comparison of algorithms whose settings are flags, and its table in the terminal."""

from __future__ import annotations

import dataclasses
import inspect
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import mhd_jax as mhd
from mhd_jax.cli import flag_help, launch, study, workdirs
from mhd_jax.cli.settings import RunSettings
from mhd_jax.core import multihost
from mhd_jax.data import split_files
from mhd_jax.runs.finished import read_run
from mhd_jax.runs.records import jsonable
from mhd_jax.studies import folder as comparison_folder
from mhd_jax.studies import tables
from mhd_jax.studies.rows import Row, shown, stopped, summarise


def compare(
    settings: RunSettings,
    algorithms: Mapping[str, mhd.Algorithm],
    seeds: Sequence[int],
    workdir: pathlib.Path,
    notes: Sequence[str] = (),
) -> tuple[list[Row], list[str]]:
    """Runs every algorithm with every seed; a run that has finished before is only read.

    Args:
      settings: the settings that all runs share.
      algorithms: the algorithms, with their hyperparameters, by name.
      seeds: seeds of data split and training.
      workdir: the folder that gets NAME/seed_N for each run, table.json, table.md, plots and
        report.html.
      notes: sentences to stand below the table.

    Returns:
      One row for each algorithm and all notes, as in table.json: also of runs that were stopped.

    Raises:
      mhd.ConfigError: settings that cannot work, or a workdir with other content.
    """
    described = require_own(settings, list(algorithms), seeds, workdir)
    cases = [study.Case(name, name, settings, each) for name, each in algorithms.items()]
    found = study.run(cases, seeds, workdir)
    rows = [summarise(name, summaries) for name, summaries in found.items()]
    every = [*notes, *stopped(found)]
    if multihost.is_main():
        runs = {
            case.name: [read_run(case.run_folder(workdir, seed)) for seed in seeds]
            for case in cases
        }
        about = {"settings": described, "seeds": list(seeds)}
        comparison_folder.write(workdir, rows, runs, every, about)
    return rows, every


def require_own(
    settings: RunSettings, names: Sequence[str], seeds: Sequence[int], workdir: pathlib.Path
) -> dict[str, Any]:
    """Returns the settings of a comparison as its folder keeps them.

    Args:
      settings, seeds, workdir: as for `compare`.
      names: the names of the algorithms.

    Raises:
      mhd.ConfigError: a workdir with other content.
    """
    described = jsonable(
        {**dataclasses.asdict(settings), "partition": _described(settings.partition)}
    )
    for name in [*described]:  # of where and how, and of where the data lies
        if name == "data_dir" or not flag_help.decides_results(name):
            del described[name]
    if split_files.is_whole(settings.partition):  # the file determines these sets
        del described["public_fraction"], described["validation_fraction"]
    if not workdirs.overwrites():
        comparison_folder.require_own(workdir, names, seeds, described)
    return described


def _described(partition: Any) -> str:
    """Returns a partition as text that is the same at every start."""
    return partition.__qualname__ if inspect.isroutine(partition) else str(partition)


def show(rows: Sequence[Row], title: str, folder: pathlib.Path, notes: Sequence[str] = ()) -> None:
    """Prints the table, the notes, and where the report is."""
    console = launch.console()
    headings, of_rows = shown(rows)
    table = tables.rich(headings, [], title)
    for lines in of_rows:
        tables.add_lines(table, lines)
        table.add_section()
    console.print(table)
    for note in notes:
        console.print(note, markup=False)
    launch.tell_report(folder)
