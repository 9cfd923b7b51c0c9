"""The tables and figures of `experiments.paper`, made from the records of its runs alone."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from experiments.paper_cases import ASKED
from mhd_jax.cli import kept, study
from mhd_jax.cli.kept import Record
from mhd_jax.core import shown
from mhd_jax.core.files import make_folder
from mhd_jax.runs.accuracies import METRICS
from mhd_jax.runs.drawing import Axes, Figure, MaxNLocator
from mhd_jax.runs.figures import accuracy_axis, legend_above, row_styles
from mhd_jax.studies import over_seeds

Row = dict[str, Any]
BySeed = dict[int, float]
Groups = Mapping[str, Mapping[str, study.Case]]

FIGURES = "figures"  # the folder of the figures in that of the records
_HEADINGS = (
    *("setting", "model", "head", "seeds", "β_sh", "β_priv"),
    *("β_sh, less isolated", "β_sh, less the best naive", "MB sent"),
)
_EXPLAINED = (
    "Mean over clients, then mean over seeds, of more than one ± standard deviation [95 % confidence "
    "interval of the mean]. Differences are to the last heads of isolated training and of the naive "
    "distillation with the highest β_sh in the same setting, seed by seed."
)


@dataclasses.dataclass(frozen=True)
class Made:
    """What is made of records.

    Attributes:
      rows: the rows of each question, as tables.json gets them.
      tables: the tables by name: their question, and what else they are by.
      figures: functions that make figures, by the names of their files.
    """

    rows: Mapping[str, list[Row]]
    tables: Mapping[str, study.Table]
    figures: Mapping[str, Callable[[], Figure]]


def of_records(
    records: pathlib.Path,
    questions: Mapping[str, Groups],
    seeds: Mapping[str, Sequence[int]],
) -> Made:
    """Returns the tables and figures of all questions that have records.

    Args:
      records: the folder of the records.
      questions: the study's cases, by question, group and name.
      seeds: the seeds that a question is to have.
    """
    rows, tables, elsewhere = {}, dict[str, study.Table](), set[str]()
    figures: dict[str, Callable[[], Figure]] = {}
    for question, groups in questions.items():
        rows[question] = found = [
            row for group in groups for row in _rows(records, question, group, groups[group])
        ]
        if not {row["folder"] for row in found} - elsewhere:  # at most main's, to compare with
            continue
        if question == "main":
            elsewhere = {case.folder for group in groups.values() for case in group.values()}
        tables[question] = _table(question, found, _missing(records, groups, seeds[question]))
        figures[f"{FIGURES}/{question}_heads"] = partial(by_head, found)
        if question == "graphs":
            # Isolated clients, which all graphs are compared with, have no graph.
            far = [row for row in found if row["topology"] == row["group"] and row["by_hops"]]
            if far:
                tables[f"{question}_hops"] = _table_by_hops(question, far)
                figures[f"{FIGURES}/{question}_hops"] = partial(by_hops, far)
    return Made(rows, tables, figures)


def publish(made: Made, records: pathlib.Path, workdir: pathlib.Path) -> None:
    """Writes tables.md, tables.json and figures, and the page.

    Args:
      made: what the records tell.
      records: the folder of the records, which gets the tables and the figures.
      workdir: the folder of the runs, which gets the page if it is there.
    """
    make_folder(records / FIGURES, "folder of figures")
    shown = list(made.tables.values())
    study.publish(records, made.rows, shown, made.figures, name="tables", page_folder=workdir)


def _rows(
    records: pathlib.Path, question: str, group: str, cases: Mapping[str, study.Case]
) -> list[Row]:
    """Returns a row for each case of a group, each model of its clients and each head."""
    first = {case.folder: name for name, case in reversed([*cases.items()])}
    of_case = {
        name: finished
        for name, case in cases.items()
        if name == first[case.folder] and (finished := _finished(_stored(records, case)))
    }
    part = "validation" if question == "pilots" else "test"
    isolated = next((n for n in of_case if cases[n].algorithm.name == "isolated"), None)
    naive = _best([n for n in of_case if cases[n].algorithm.name == "naive"], of_case, part)
    rows = []
    for name, own in of_case.items():
        for model in _models(own):
            references = {
                difference: {} if other in (None, name) else _last(of_case[other], model, part)
                for difference, other in (("less_isolated", isolated), ("less_naive", naive))
            }
            about = {"group": group, "case": name, "folder": cases[name].folder, "model": model}
            about |= {"topology": own[0]["settings"]["topology"]["name"], "best_naive": naive}
            rows += [
                {**about, **row, **_differences(values, references), **_of_messages(own)}
                for row, values in _by_head(own, model, part)
            ]
    return rows


def _stored(records: pathlib.Path, case: study.Case) -> list[Record]:
    return kept.stored(records, case.folder, case.settings, case.algorithm)


def _finished(found: Iterable[Record]) -> list[Record]:
    return [record for record in found if record["status"] != "diverged"]


def _best(names: Sequence[str], of_case: Mapping[str, list[Record]], part: str) -> str | None:
    """Returns the case with the highest mean β_sh over the seeds that all have; None without any."""
    of_seeds = {name: _last(of_case[name], None, part) for name in names}
    common = set.intersection(*(set(each) for each in of_seeds.values())) if names else set()

    def mean(name: str) -> float:
        return sum(of_seeds[name][seed] for seed in common)

    return max(names, key=mean, default=None)


def _models(records: Sequence[Record]) -> list[str | None]:
    """Returns the models of a case's clients; None, which stands for all clients, if there is one."""
    models = list(dict.fromkeys(client["model"] for client in records[0]["per_client"]))
    return [None] if len(models) == 1 else [*models]


def _accuracies(record: Record, model: str | None, part: str) -> Mapping[str, dict[str, float]]:
    """Returns β_sh and β_priv by head: means over the clients of a model, over all if it has none.

    On validation samples, they are always over all clients.
    """
    if part == "validation":
        return record["validation"]
    clients = [client for client in record["per_client"] if client["model"] == model]
    if not clients:
        return record
    return {
        metric: {
            head: sum(client[metric][head] for client in clients) / len(clients)
            for head in record[metric]
        }
        for metric in METRICS
    }


def _by_head(
    records: Sequence[Record], model: str | None, part: str
) -> Iterable[tuple[Row, BySeed]]:
    """Yields the statistics of each head of a case, and its β_sh by seed.

    Accuracies by hops, which records have of all clients alone, are not in the rows of one model.
    """
    found = {record["seed"]: _accuracies(record, model, part) for record in records}
    for head in records[0]["beta_sh"]:
        values = {seed: each["beta_sh"][head] for seed, each in found.items()}
        hops: dict[int, list[float]] = {}
        for entry in (entry for record in records for entry in record["by_hops"] or []):
            if entry["hops"] is not None and model is None:
                hops.setdefault(entry["hops"], []).append(entry["accuracy"][head])
        yield (
            {
                "head": head,
                "seeds": list(found),
                **{
                    metric: over_seeds.interval([each[metric][head] for each in found.values()])
                    for metric in METRICS
                },
                "by_hops": {far: over_seeds.interval(each) for far, each in hops.items()},
            },
            values,
        )


def _last(records: Sequence[Record], model: str | None, part: str) -> BySeed:
    """Returns β_sh of the last head by seed."""
    return {
        record["seed"]: list(_accuracies(record, model, part)["beta_sh"].values())[-1]
        for record in records
    }


def _differences(values: BySeed, references: Mapping[str, BySeed]) -> Row:
    """Returns the statistics of differences to references, over the seeds that both have."""
    return {
        name: over_seeds.interval([values[seed] - other[seed] for seed in values if seed in other])
        for name, other in references.items()
    }


def _of_messages(records: Sequence[Record]) -> Row:
    sent = [record["communication"]["total_bytes"] for record in records]
    return {"total_bytes": over_seeds.spread(sent)["mean"]}


def _missing(records: pathlib.Path, groups: Groups, seeds: Sequence[int]) -> list[str]:
    """Returns a sentence for each case that has no result with some of the seeds."""
    notes = []
    for name, case in {
        name: case for group in groups.values() for name, case in group.items()
    }.items():
        found = {record["seed"]: record for record in _stored(records, case)}
        absent = [seed for seed in seeds if seed not in found]
        if absent:
            notes.append(f"{name} has not been run with seed {', '.join(map(str, absent))}.")
        notes += [
            f"{name}: {record['reason']}"
            for record in found.values()
            if record["status"] == "diverged"
        ]
    return notes


def _table(question: str, rows: Sequence[Row], missing: Sequence[str]) -> study.Table:
    """Returns the table of accuracies, with a line for each row."""
    lines = [
        [
            row["case"],
            row["group"],
            row["model"] or "",
            row["head"],
            str(len(row["seeds"])),
            *(over_seeds.as_cell(row[metric]) for metric in METRICS),
            *(_difference(row[name]) for name in ("less_isolated", "less_naive")),
            f"{row['total_bytes'] / 1e6:,.1f}",
        ]
        for row in rows
    ]
    on = ["On validation samples."] if question == "pilots" else []
    best = {row["group"]: row["best_naive"] for row in rows if row["best_naive"]}
    named = [f"The best naive{f' of {group}' if group else ''}: {n}." for group, n in best.items()]
    notes = [f"{question}: {ASKED[question]}", *on, _EXPLAINED, *named, *missing]
    columns = zip([question, *_HEADINGS], *lines, strict=True)
    filled = [column for column in columns if any(column[1:])]
    headings, *cells = zip(*filled, strict=True)
    return study.Table(headings, _named_once(cells), question, notes)


def _difference(value: over_seeds.Statistic) -> str:
    if value["mean"] is None:
        return ""
    return over_seeds.as_cell(value, "+", over_seeds.OF_DIFFERENCES)


def _table_by_hops(question: str, rows: Sequence[Row]) -> study.Table:
    """Returns the table of accuracies by hops to a client that holds the class."""
    far = sorted({hops for row in rows for hops in row["by_hops"]})
    lines = [
        [
            *(row["case"], row["group"], row["head"]),
            *(over_seeds.as_cell(row["by_hops"].get(hops, {"mean": None})) for hops in far),
        ]
        for row in rows
    ]
    note = "Accuracy on classes by hops to the next client that holds them; 0 are a client's own."
    reached = [shown.counted(hops, "hop") for hops in far]
    headings = [question, "graph", "head", *reached]
    return study.Table(headings, _named_once(lines), f"{question}, by hops", [note])


def _named_once(lines: Sequence[Sequence[str]]) -> list[list[str]]:
    """Returns lines whose first cell is empty where it is the one above."""
    above = ["", *(line[0] for line in lines)]
    return [
        ["" if name == before else name, *others]
        for before, (name, *others) in zip(above, lines, strict=False)
    ]


def _lines(rows: Iterable[Row]) -> dict[str, list[Row]]:
    """Returns rows by the name of a figure's line: a case, and its model if it has several."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        name = " ".join(filter(None, (row["case"], row["model"])))
        found.setdefault(name, []).append(row)
    return found


def by_head(rows: Sequence[Row]) -> Figure:
    """Plots β_sh and β_priv over the heads' ranks, with intervals; a line for each case."""
    drawn = Figure(figsize=(12, 4.5), layout="constrained")
    series = _lines({(row["case"], row["model"], row["head"]): row for row in rows}.values())
    heads = [row["head"] for row in max(series.values(), key=len)]
    for axis, (metric, label) in zip(drawn.subplots(1, 2), METRICS.items(), strict=True):
        styles = row_styles(list(series))
        for number, (name, own) in enumerate(series.items()):
            beside = (number - (len(series) - 1) / 2) * 0.03
            places = [rank + beside for rank in range(len(own))]
            values = [row[metric] for row in own]
            over_seeds.draw_line(axis, places, values, **styles[name], label=name)
        axis.set_xticks(range(len(heads)), heads)
        _fitted_axis(axis, label)
    legend_above(drawn)
    return drawn


def by_hops(rows: Sequence[Row]) -> Figure:
    """Plots the last head's accuracy by hops to a client that holds the class; a panel a graph."""
    groups = list(dict.fromkeys(row["group"] for row in rows))
    drawn = Figure(figsize=(3.2 * len(groups) + 2, 4), layout="constrained")
    names = list(dict.fromkeys(_method(row) for row in rows))
    styles = row_styles(names)
    panels = drawn.subplots(1, len(groups), sharey=True, squeeze=False)[0]
    for axis, group in zip(panels, groups, strict=True):
        last = {row["case"]: row for row in rows if row["group"] == group}
        for row in last.values():
            hops = sorted(row["by_hops"])
            values = [row["by_hops"][far] for far in hops]
            name = _method(row)
            over_seeds.draw_line(axis, hops, values, **styles[name], label=name)
        axis.set_title(group)
        axis.set_xlabel("hops")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        _fitted_axis(axis, "accuracy of the last head")
    legend_above(drawn)
    return drawn


def _fitted_axis(axis: Axes, label: str) -> None:
    """Lets a vertical axis of accuracies end at the highest: of many classes, all may be low."""
    accuracy_axis(axis, label)
    axis.autoscale(axis="y")
    axis.set_ylim(0, 1.04 * axis.get_ylim()[1])  # the highest marker is whole


def _method(row: Row) -> str:
    return row["case"].removeprefix(f"{row['group']}_")
