"""Comparison of algorithms on the same clients, splits, seeds and evaluation, with its table."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from rich.table import Table

import mhd_jax as mhd
from experiments.settings import RunSettings
from experiments.watching import watchers
from mhd_jax.core import multihost
from mhd_jax.data import split_files
from mhd_jax.runs import report
from mhd_jax.runs.decoration import decoration
from mhd_jax.runs.figures import METRICS
from mhd_jax.runs.finished import FinishedRun, read_run
from mhd_jax.runs.records import jsonable, read_json, write_json

Row = dict[str, Any]


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
    del described["data_dir"]  # the same data may lie elsewhere
    for name in ("keep_checkpoints", "keep_best", "fall_back"):  # these change no result
        del described[name]
    if split_files.is_whole(settings.partition):  # the file determines these sets
        del described["public_fraction"], described["validation_fraction"]
    names = [algorithm.name for algorithm in algorithms]
    _check_folder(workdir, described, names, seeds)
    for algorithm in algorithms:  # check all before the first trains for hours
        settings.check(algorithm, seeds[0])
    rows: list[Row] = []
    runs: dict[str, list[FinishedRun]] = {}
    for algorithm in algorithms:
        label = f"[{len(rows) + 1}/{len(algorithms)}] {algorithm.name}"
        folders = [workdir / algorithm.name / f"seed_{seed}" for seed in seeds]
        results = settings.simulate(algorithm, seeds, folders, watchers(label))
        rows.append(summarise(algorithm.name, [result.summary for result in results]))
        if multihost.is_main():
            runs[algorithm.name] = [read_run(folder) for folder in folders]
    if multihost.is_main():
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

    def accuracies(of: Sequence[Mapping[str, Any]]) -> Row:
        return {
            metric: {head: spread([part[metric][head] for part in of]) for head in of[0][metric]}
            for metric in METRICS
        }

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


def spread(values: Sequence[float | None]) -> dict[str, float | None]:
    """Returns mean and standard deviation (n − 1) of the values that are not None.

    The mean is None without such values, the deviation with fewer than two.
    """
    known = [value for value in values if value is not None]
    if not known:
        return {"mean": None, "std": None}
    std = float(np.std(known, ddof=1)) if len(known) > 1 else None
    return {"mean": float(np.mean(known)), "std": std}


def markdown(rows: Sequence[Row], notes: Sequence[str] = ()) -> str:
    """Returns the table as Markdown, with a line for each algorithm and head."""
    counts = [row["seeds"] for row in rows]
    lines = ["| algorithm | head | β_sh | β_priv | MB sent |", "|---|---|---|---|---|"]
    for row in rows:
        megabytes = f"{row['total_bytes'] / 1e6:,.1f}"
        for head, *values in report.accuracy_lines(row):
            cells = " | ".join(as_cell(value) for value in values)
            lines.append(f"| {row['algorithm']} | {head} | {cells} | {megabytes} |")
    seeds = "–".join(map(str, sorted({min(counts), max(counts)})))
    lines += ["", f"Mean over clients, then mean ± standard deviation over {seeds} seed(s)."]
    return "\n".join([*lines, *notes]) + "\n"


def rich_table(rows: Sequence[Row], title: str) -> Table:
    """Returns the table for the terminal."""
    table = Table("algorithm", "head", "β_sh", "β_priv", "MB sent", "ms/step", title=title)
    for row in rows:
        lines = report.accuracy_lines(row)
        for i, (head, *values) in enumerate(lines):
            first = i == 0
            table.add_row(
                row["algorithm"] if first else "",
                head,
                *(as_cell(value) for value in values),
                f"{row['total_bytes'] / 1e6:.1f}" if first else "",
                f"{1000 * row['seconds_per_step']:.2f}" if first else "",
                end_section=i == len(lines) - 1,
            )
    return table


def as_cell(value: Mapping[str, float | None], sign: str = "") -> str:
    """Formats a mean ± its standard deviation; with `sign` "+" a positive mean has a sign."""
    if value["mean"] is None:
        return "–"
    deviation = "" if value["std"] is None else f" ± {value['std']:.3f}"
    return f"{value['mean']:{sign}.3f}{deviation}"
