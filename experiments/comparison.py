"""Comparison of algorithms on the same clients, splits, seeds and evaluation, with its table."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from rich.table import Table

import mhd_jax as mhd
from experiments import launch, study, tables
from experiments.over_seeds import accuracies, as_cell
from experiments.settings import RunSettings
from mhd_jax.core import multihost
from mhd_jax.data import split_files
from mhd_jax.runs import report
from mhd_jax.runs.decoration import decoration
from mhd_jax.runs.finished import FinishedRun, read_run
from mhd_jax.runs.records import jsonable, read_json, write_json

Row = dict[str, Any]
_CHANGE_NO_RESULT = ("data_dir", "keep_checkpoints", "keep_best", "fall_back")


def compare(
    settings: RunSettings,
    algorithms: Sequence[mhd.Algorithm],
    seeds: Sequence[int],
    workdir: pathlib.Path,
    notes: Sequence[str] = (),
) -> list[Row]:
    """Runs every algorithm with every seed; a run that has finished before is only read.

    Args:
      settings: the settings that all runs share.
      algorithms: the algorithms, with their hyperparameters.
      seeds: seeds of data split and training.
      workdir: the folder that gets ALGORITHM/seed_N for each run, table.json, table.md, plots and
        report.html.
      notes: sentences to print below the table.

    Returns:
      One row for each algorithm, as in table.json.

    Raises:
      mhd.ConfigError: settings that cannot work, or a workdir with other content.
    """
    described = jsonable({**dataclasses.asdict(settings), "partition": str(settings.partition)})
    for name in _CHANGE_NO_RESULT:
        del described[name]
    if split_files.is_whole(settings.partition):  # the file determines these sets
        del described["public_fraction"], described["validation_fraction"]
    names = [algorithm.name for algorithm in algorithms]
    _check_folder(workdir, described, names, seeds)
    cases = [study.Case(each.name, each.name, settings, each) for each in algorithms]
    found = study.run(cases, seeds, workdir)
    rows = [summarise(name, summaries) for name, summaries in found.items()]
    if multihost.is_main():
        runs = {
            case.name: [read_run(case.run_folder(workdir, seed)) for seed in seeds]
            for case in cases
        }
        write(workdir, rows, runs, notes, {"settings": described, "seeds": list(seeds)})
    return rows


def write(
    folder: pathlib.Path,
    rows: Sequence[Row],
    runs: Mapping[str, Sequence[FinishedRun]],
    notes: Sequence[str],
    about: Mapping[str, Any],
) -> None:
    """Writes table.json, with further entries `about` the comparison, table.md and the report."""
    write_json(folder / "table.json", {**about, "rows": rows, "notes": list(notes)})
    (folder / "table.md").write_text(markdown(rows, notes), encoding="utf-8")
    again = "The tables are there; the same command tries again."
    with decoration(f"the report of {folder}", again):
        report.write_comparison(folder, rows, runs, notes)


def _check_folder(
    workdir: pathlib.Path, settings: Row, names: Sequence[str], seeds: Sequence[int]
) -> None:
    """Raises `mhd.ConfigError` if a folder's table has other settings, or would lose content."""
    if (workdir / "config.json").exists():
        raise mhd.ConfigError(f"{workdir} holds a single run; choose another workdir.")
    if not (workdir / "table.json").exists():
        return
    stored = read_json(workdir / "table.json")
    differing = [key for key in settings if stored["settings"].get(key) != settings[key]]
    lost = [row["algorithm"] for row in stored["rows"] if row["algorithm"] not in names]
    lost += [f"seed {seed}" for seed in stored["seeds"] if seed not in seeds]
    if differing or lost:
        what = f"other settings ({', '.join(differing)})" if differing else ", ".join(lost)
        raise mhd.ConfigError(
            f"{workdir} holds a comparison with {what}; choose another workdir"
            + ("." if differing else ", or name these too.")
        )


def summarise(name: str, summaries: Sequence[Mapping[str, Any]]) -> Row:
    """Returns one algorithm's row: means and standard deviations (n − 1) over seeds."""
    parts = {
        part: [summary[part] for summary in summaries if part in summary]
        for part in ("honest", "consensus")
    }

    def median(name: str) -> float:
        return float(np.median([summary["timing"][name] for summary in summaries]))

    return {
        "algorithm": name,
        "seeds": len(summaries),
        **accuracies(summaries),
        **{part: accuracies(of) for part, of in parts.items() if of},
        "total_bytes": float(np.mean([s["communication"]["total_bytes"] for s in summaries])),
        "seconds_per_step": median("seconds_per_step"),
        "compile_seconds": median("compile_seconds"),
    }


_HEADINGS = ("algorithm", "head", "β_sh", "β_priv", "MB sent")


def markdown(rows: Sequence[Row], notes: Sequence[str] = ()) -> str:
    """Returns the table as Markdown, with a line for each algorithm and head."""
    counts = [row["seeds"] for row in rows]
    lines = [
        [row["algorithm"], head, *map(as_cell, values), f"{row['total_bytes'] / 1e6:,.1f}"]
        for row in rows
        for head, *values in report.accuracy_lines(row)
    ]
    seeds = "–".join(map(str, sorted({min(counts), max(counts)})))
    said = f"Mean over clients, then mean ± standard deviation over {seeds} seed(s)."
    return "\n".join([tables.markdown(_HEADINGS, lines), said, *notes]) + "\n"


def show(rows: Sequence[Row], title: str, folder: pathlib.Path, notes: Sequence[str] = ()) -> None:
    """Prints the table, the notes, and where the report is."""
    console = launch.console()
    console.print(_rich_table(rows, title))
    for note in notes:
        console.print(note, markup=False)
    launch.tell_report(folder)


def _rich_table(rows: Sequence[Row], title: str) -> Table:
    table = Table(*_HEADINGS, "ms/step", title=title)
    for row in rows:
        name = row["algorithm"]
        costs = [f"{row['total_bytes'] / 1e6:.1f}", f"{1000 * row['seconds_per_step']:.2f}"]
        for head, *values in report.accuracy_lines(row):
            table.add_row(name, head, *map(as_cell, values), *costs)
            name, costs = "", []
        table.add_section()
    return table
