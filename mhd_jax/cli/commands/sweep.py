r"""Runs a grid over any settings and seeds, and writes the results as one tidy table and a plot.

  mhd sweep --grid=skew=0,10,100 --grid=algorithm=isolated,naive,mhd --seeds=3 \
      --workdir=runs/skew

--grid takes all combinations; --vary takes the common setting, and each value of each flag alone;
--search tries settings of a --space, judges them on validation samples, and tells the best one.
Configurations of one shape (which differ in seeds, graphs, data or numbers) are computed in one
program. A configuration that diverges, or that cannot work, is noted beside the others. The folder
gets results.csv and results.jsonl (a row for each run and head), table.md, table.json, sweep.png
and .svg, and report.html, which says while runs go on how many have finished; the same command again
resumes interrupted runs, and only reads finished ones.
"""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from absl import flags

import mhd_jax as mhd
from mhd_jax.cli import algorithm_flag, cases, launch, search, seed_flags, study, workdirs
from mhd_jax.cli import flags as run_flags
from mhd_jax.cli.cases import Assignment, Axis, Row
from mhd_jax.core import multihost
from mhd_jax.runs.accuracies import METRICS
from mhd_jax.runs.drawing import Axes, Figure
from mhd_jax.runs.figures import (
    accuracy_axis,
    first_and_last,
    head_colours,
    legend_above,
    row_styles,
)
from mhd_jax.runs.palette import Style
from mhd_jax.studies import over_seeds
from mhd_jax.studies.over_seeds import Statistic

_GRID = flags.DEFINE_multi_string(
    "grid", [], "FLAG=VALUE,VALUE: a flag and the values to combine with those of the other grids"
)
_VARY = flags.DEFINE_multi_string(
    "vary", [], "FLAG=VALUE,VALUE: a flag and the values to try by themselves"
)
flags.adopt_module_key_flags(search)
flags.adopt_module_key_flags(algorithm_flag)
flags.adopt_module_key_flags(seed_flags)
flags.adopt_module_key_flags(run_flags)
flags.adopt_module_key_flags(launch)


def main() -> None:
    """Runs the sweep that the flags describe."""
    ways = [
        way
        for way, given in (("grid", _GRID.value), ("vary", _VARY.value), ("search", search.asked()))
        if given
    ]
    if not ways:
        raise mhd.ConfigError("give --grid, --vary or --search, like --grid=nu_aux=0.1,0.3,1.")
    if len(ways) > 1:
        raise mhd.ConfigError(
            f"--{' and --'.join(ways)} are several ways to sweep; give one of them."
        )
    if ways == ["search"]:
        _search()
    else:
        _sweep(*ways)


def _sweep(kind: str) -> None:
    """Runs all combinations of values, or each value alone."""
    axes = cases.axes(_GRID.value or _VARY.value, kind)
    assignments = cases.grid(axes) if _GRID.value else cases.one_at_a_time(axes)
    workdir = workdirs.chosen("sweep")
    _, content, table = carry_out(assignments, workdir)
    drawn = {"sweep": lambda: figure(content["rows"], axes if _GRID.value else [])}
    study.publish(workdir, {"axes": dict(axes), **content}, [table], drawn)


def _search() -> None:
    """Searches a space; of the setting that was chosen, and of no other, shows the test's figures."""
    workdir, seeds = workdirs.chosen("search"), seed_flags.values()
    trials = search.carry_out(seeds, workdir)
    outcomes = {trial.case.name: trial.outcomes for trial in trials}  # a setting may come twice
    content = _record([each for own in outcomes.values() for each in own], seeds, workdir)
    shown = [search.table(trials, content["notes"])]
    if best := search.best(trials):
        rows = [row for row in content["rows"] if row["case"] == best.case.name]
        shown.append(_table(rows, seeds, "the best setting on test samples"))
    study.publish(workdir, {**search.content(trials), **content}, shown, {})


def carry_out(
    assignments: Sequence[Assignment], workdir: pathlib.Path
) -> tuple[list[study.Outcome], dict[str, Any], study.Table]:
    """Runs the cases of assignments of flags, and writes results.csv and results.jsonl.

    Returns:
      The outcomes; the seeds, the rows and the notes about what is missing, for table.json; and the
      table.
    """
    found, notes = cases.read(assignments)
    seeds = seed_flags.values()
    outcomes = study.explore(found, seeds, workdir)
    content = _record(outcomes, seeds, workdir, notes)
    return outcomes, content, _table(content["rows"], seeds, notes=content["notes"])


def _record(
    outcomes: Sequence[study.Outcome],
    seeds: Sequence[int],
    workdir: pathlib.Path,
    notes: Sequence[str] = (),
) -> dict[str, Any]:
    """Writes results.csv and results.jsonl, and returns seeds, rows and notes for table.json."""
    if multihost.is_main():
        cases.write_runs(workdir, outcomes)
    notes = [*notes, *cases.failures(outcomes), *cases.stopped(outcomes)]
    return {"seeds": seeds, "rows": cases.by_case(outcomes), "notes": notes}


def _table(
    rows: Sequence[Row], seeds: Sequence[int], title: str | None = None, notes: Sequence[str] = ()
) -> study.Table:
    """Returns the table of test accuracies."""
    said = (
        f"Mean over clients, then mean ± standard deviation over {len(seeds)} seed(s) [95 % "
        "confidence interval of the mean]."
    )
    return study.Table(_HEADINGS, lines(rows), title, notes=[said, *notes])


_HEADINGS = ("case", "head", "β_sh", "β_priv", "MB sent")


def lines(rows: Sequence[Row]) -> list[list[str]]:
    """Returns the table's lines: case, head, accuracies with their intervals, bytes."""
    found = []
    for row in rows:
        sent = "" if row["total_bytes"] is None else f"{row['total_bytes'] / 1e6:,.1f}"
        if not row["beta_sh"]:
            found.append([row["case"], "–", "–", "–", "–"])
        for i, head in enumerate(row["beta_sh"]):
            cells = [over_seeds.as_cell(row[metric][head]) for metric in METRICS]
            found.append([row["case"] if i == 0 else "", head, *cells, sent if i == 0 else ""])
    return found


def figure(rows: Sequence[Row], axes: Sequence[Axis]) -> Figure:
    """Plots accuracies with 95 % intervals over the longest numeric axis, or else by case."""
    numeric = [
        (name, values) for name, values in axes if len(values) > 2 and all(map(_is_number, values))
    ]
    rows = [row for row in rows if row["beta_sh"]]
    if numeric:
        return _over_numbers(rows, max(numeric, key=lambda axis: len(axis[1]))[0])
    return _case_by_case(rows)


def _is_number(text: str) -> bool:
    try:
        return np.isfinite(float(text))
    except ValueError:
        return False


def _over_numbers(rows: Sequence[Row], name: str) -> Figure:
    """Plots a line for each combination of the other flags; main heads are dashed."""
    drawn = Figure(figsize=(12, 4), layout="constrained")
    panels = drawn.subplots(1, 2, sharey=True)
    series: dict[str, list[Row]] = {}
    for row in rows:
        rest = " ".join(f"{k}={v}" for k, v in row["given"].items() if k != name)
        series.setdefault(rest or row["algorithm"], []).append(row)
    # Equally spaced, so that close values can be distinguished.
    numbers = sorted({float(row["given"][name]) for row in rows if name in row["given"]})
    styles = row_styles(list(series))
    for axis, (metric, label) in zip(panels, METRICS.items(), strict=True):
        for rest, own in series.items():
            places = [numbers.index(float(r["given"][name])) for r in own if name in r["given"]]
            _draw_series(axis, places, [row[metric] for row in own], rest, styles[rest])
        axis.set_xticks(range(len(numbers)), [f"{number:g}" for number in numbers])
        axis.set_xlabel(name)
        accuracy_axis(axis, label)
    legend_above(drawn)
    return drawn


def _draw_series(
    axis: Axes,
    places: Sequence[int],
    accuracies: Sequence[Mapping[str, Statistic]],
    name: str,
    style: Style,
) -> None:
    """Draws the last and the main head of some cases, each with its place on the axis.

    Cases without places are of an algorithm without the flag: one value is for the whole axis.
    """
    several = any(len(by_head) > 1 for by_head in accuracies)
    for head, dashes in (("last", "-"), ("main", "--")) if several else (("main", "-"),):
        values = [list(by_head.values())[0 if head == "main" else -1] for by_head in accuracies]
        if not places:
            level = values[0]["mean"]
            if level is not None:
                axis.axhline(level, color=style["color"], linestyle=":", label=name)
            return
        # Values of the flag may be given in any order.
        order = sorted(range(len(places)), key=places.__getitem__)
        known = [i for i in order if values[i]["mean"] is not None]
        if known:
            line = {**style, "linestyle": dashes, "label": f"{name}, {head}"}
            xs, ys = [places[i] for i in known], [values[i] for i in known]
            over_seeds.draw_line(axis, xs, ys, **line)


def _case_by_case(rows: Sequence[Row]) -> Figure:
    """Plots each case on its own line, with its main and its last head."""
    drawn = Figure(figsize=(12, 1.2 + 0.34 * len(rows)), layout="constrained")
    panels = drawn.subplots(1, 2, sharey=True)
    for axis, (metric, label) in zip(panels, METRICS.items(), strict=True):
        for y, row in enumerate(rows):
            heads = list(row[metric])
            for head in first_and_last(heads):
                is_main = head == "main"
                over_seeds.draw_point(
                    axis,
                    y + (0 if len(heads) == 1 else 0.14 if is_main else -0.14),
                    row[metric][head],
                    color="black" if is_main else head_colours(2)[1],
                    marker="o" if is_main else "s",
                    markersize=4,
                )
        over_seeds.name_rows(axis, [row["case"] for row in rows], label)
    drawn.suptitle("main head (black) and last auxiliary head (colour), 95 % intervals over seeds")
    return drawn


def start() -> None:
    """Starts the command on the arguments of this process."""
    launch.run(main, several_processes=True)
