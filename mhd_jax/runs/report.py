"""Reports of a run or a comparison: a self-contained HTML page, and figure files."""

from __future__ import annotations

import base64
import pathlib
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from mhd_jax.data import partition_statistics
from mhd_jax.runs import (
    class_map,
    comparison_curves,
    curves,
    dot_plots,
    figures,
    graph,
    lanes,
    levels,
    page,
    replay,
)
from mhd_jax.runs import settings as dotted
from mhd_jax.runs.accuracies import METRICS, accuracy_lines, chance
from mhd_jax.runs.drawing import Figure, save_figure
from mhd_jax.runs.figures import Record
from mhd_jax.runs.finished import FinishedRun
from mhd_jax.runs.palette import row_styles
from mhd_jax.runs.records import read_json
from mhd_jax.training.metrics import SYMBOLS

_PAGE_DPI = 100  # pixels on the page for an inch of a figure
_MOST_IN_TITLE = 6  # rows up to which a comparison's title names them
_MOST_CLASSES = 20  # classes up to which a client's page lists those that it does not hold


def write(run: FinishedRun) -> None:
    """Writes a finished run's figures and its `report.html` into its folder."""
    summary, history = run.summary, run.history
    data = summary.get("data")  # folders of older versions lack this and other entries
    names = _class_names(summary)
    drawn: dict[str, Callable[[], Figure]] = {
        "accuracy": lambda: figures.accuracy(history, chance(summary)),
        "per_class_accuracy": lambda: figures.per_class(summary, names),
    }
    if "by_hops" in summary:
        drawn["hops"] = lambda: figures.hops(summary, chance(summary))
    by_class = [record for record in history if "per_class_accuracy" in record["per_client"]]
    if by_class:
        drawn["per_class_over_time"] = lambda: figures.per_class_over_time(by_class)
    by_edge = {
        kind: np.array(counts)
        for kind, counts in summary["communication"]["by_edge"].items()
        if np.ndim(counts) == 2
    }
    if by_edge:
        drawn["edges"] = lambda: figures.edges(by_edge)
    if "density" in summary:
        drawn["density"] = lambda: figures.density(summary, names)
    if "diagnostics" in summary:
        drawn["followed"] = lambda: figures.followed(summary)
    drawn_graph, classes = graph.of_run(summary, history), class_map.of_run(summary)
    took_part = lanes.of_run(summary, history)
    described = None
    if data is not None:
        counts = np.array(data["private_samples"])
        described = partition_statistics.describe(counts)
        drawn["data_split"] = lambda: figures.data_split(counts, names)
    on = "" if _pooled(summary) else f", {summary['topology']['name']} graph"
    title = f"{summary['algorithm']} on {summary['dataset']}, {summary['num_clients']} clients{on}"
    page.write(
        run.path,
        "run.html",
        title=title,
        summary=summary,
        sentences=in_words(summary),
        figures=save(run.path, drawn),
        tables={**_run_tables(summary, described), **_held(classes)},
        described=described,
        graph=_graph(drawn_graph),
        class_maps=_class_maps(classes),
        lanes=None if took_part is None else lanes.drawing(took_part),
        states=lanes.STATES,
        scale=levels.colours()[::7],
        targets=_targets(summary),
        curves=_curves(summary, history),
        replay=replay.of(history, drawn_graph, classes),
        client_view=_client_view(summary, history),
        settings=dotted.flat(summary["settings"]),
        environments=[run.config.get("environment", {})],
    )


def _curves(summary: Record, history: Sequence[Record]) -> dict[str, Any]:
    """Returns the curves of all clients, of honest ones and of each model's; of one pooled model, its."""
    if _pooled(summary):
        return curves.of(history)
    models = [client["model"] for client in summary["per_client"]]
    return curves.of(history, summary["settings"]["clients"].get("adversaries", ()), models)


def _class_maps(found: class_map.ClassMap | None) -> dict[str, Any] | None:
    """Returns the class maps of the main and the last head; None if there are none to draw."""
    if found is None or not found.is_drawn:
        return None
    maps = [class_map.drawing(found, head) for head in class_map.shown_heads(found)]
    orders = {name: list(order) for name, order in class_map.orders(found).items()}
    return {"maps": maps, "orders": orders, "is_folded": found.is_folded}


def _graph(found: graph.Graph | None) -> dict[str, Any] | None:
    """Returns the drawing of a run's graph and its legend; None if there is none to draw."""
    if found is None:
        return None
    return {
        "drawing": graph.drawing(found),
        "legend": graph.legend(found),
        "about": found,
        "is_matrix": len(found.links) > graph.MOST_DRAWN,
    }


def write_comparison(
    folder: pathlib.Path,
    rows: Sequence[Record],
    runs: Mapping[str, Sequence[FinishedRun]],
    verdict: Sequence[str],
    differences: Mapping[str, Mapping[str, Sequence[Any]]],
    notes: Sequence[str],
) -> None:
    """Writes a comparison's figures and its `report.html`.

    Args:
      folder: the folder to write to.
      rows: the table, from `mhd_jax.studies.rows.summarise`.
      runs: the runs of each row, by the row's name (its "algorithm").
      verdict: sentences that say who is ahead and who ties.
      differences: paired differences by metric and baseline, see `mhd_jax.studies.verdict`.
      notes: sentences that a reader must know beside the figures.
    """
    histories = _at_common_steps(runs)
    guess = _common_chance(runs)
    drawn = {
        "comparison": lambda: figures.comparison(rows, chance=guess),
        "accuracy": lambda: figures.comparison_curves(histories, guess),
    }
    if figures.sends(histories):
        drawn["communication"] = lambda: figures.communication_curves(histories, guess)
    common, differing = dotted.compared(runs)
    environments = [run.config.get("environment", {}) for each in runs.values() for run in each]
    page.write(
        folder,
        "comparison.html",
        title=f"Comparison of {', '.join(runs)}"
        if len(runs) <= _MOST_IN_TITLE
        else f"Comparison of {len(runs)} configurations",
        sentences=[_what_is_compared(runs, differing)],
        targets=_targets(next(iter(runs.values()))[0].summary),
        curves=comparison_curves.of(_by_seed(histories, runs), guess) if histories else None,
        verdict=verdict,
        dot_plots=_dot_plots(differences, list(runs)),
        figures=save(folder, drawn),
        tables=_comparison_tables(folder, rows, runs, differing),
        notes=notes,
        settings=common,
        environments=environments,
    )


def write_study(
    folder: pathlib.Path,
    tables: Sequence[tuple[page.Table, Sequence[str]]],
    drawn: Mapping[str, Any],
) -> None:
    """Writes a study's `report.html`.

    Args:
      folder: the study's folder; settings and environments are those of the runs below it.
      tables: its tables, each with the sentences to stand below it.
      drawn: its figures by name, from `save`.
    """
    configs = [read_json(path) for path in sorted(folder.rglob("config.json"))]
    each = [dotted.flat(config["settings"]) for config in configs]
    shared = {
        name: value
        for name, value in (each[0] if each else {}).items()
        if all(name in other and other[name] == value for other in each)
    }
    page.write(
        folder,
        "study.html",
        title=f"{folder.resolve().name}: {tables[0][0].caption}",
        sentences=[f"{len(configs):,} runs are in this folder."] if configs else [],
        tables=tables,
        figures=drawn,
        settings=shared,
        environments=[config.get("environment", {}) for config in configs],
    )


def _at_common_steps(runs: Mapping[str, Sequence[FinishedRun]]) -> figures.Histories:
    """Returns each row's evaluations at steps that all its runs have; stopped runs have fewer."""
    found = {}
    for name, each in runs.items():
        steps = set.intersection(*({record["step"] for record in run.history} for run in each))
        if steps:
            found[name] = [[rec for rec in run.history if rec["step"] in steps] for run in each]
    return found


def _by_seed(
    histories: figures.Histories, runs: Mapping[str, Sequence[FinishedRun]]
) -> dict[str, comparison_curves.Runs]:
    """Returns each row's evaluations by the seed of their run."""
    return {
        name: {run.summary["seed"]: history for run, history in zip(runs[name], each, strict=True)}
        for name, each in histories.items()
    }


def _common_chance(runs: Mapping[str, Sequence[FinishedRun]]) -> float | None:
    """Returns the accuracy of a guess; None if it is not the same for all runs."""
    found = {chance(run.summary) for each in runs.values() for run in each}
    return found.pop() if len(found) == 1 else None


def in_words(summary: Record) -> list[str]:
    """Describes a run and its results in a few sentences."""
    settings, timing = summary["settings"], summary["timing"]
    who = f"{summary['num_clients']} clients"
    if _pooled(summary):
        done = f"One model learned {summary['dataset']} from what {who} hold together"
    else:
        name = settings["topology"]["name"]
        done = f"{who} learned {summary['dataset']} by {summary['algorithm']} on the {name} graph"
    sentences = [f"{done}, in {summary['steps']:,} steps with seed {summary['seed']}."]
    if summary["status"] == "stopped":
        asked = settings["steps"]
        sentences.append(f"Of {asked:,} steps it was stopped here: {summary['stopped_because']}.")
    if "data" in summary:
        roles = [f"{n:,} {role}" for role, n in summary["data"]["samples"].items() if n]
        models = [each.rpartition(":") for each in settings["clients"]["models"]]
        listed = ", ".join(f"{count} × {name}" for name, _, count in models)
        dealt = partition_in_words(settings["clients"]["partition"])
        sentences.append(f"Clients: {listed}; {dealt}. Samples: {', '.join(roles)}.")
    goals = Counter(settings["clients"].get("objectives", ()))
    if goals:
        listed = ", ".join(f"{count} {goal}" for goal, count in goals.items())
        sentences.append(f"By what clients learn from their own data, there are {listed}.")
    sentences.append(_accuracy_in_words(summary))
    for client, kind in settings["clients"].get("adversaries", {}).items():
        sentences.append(f"Client {client} is an adversary ({kind}).")
    sent = summary["communication"]
    if sent["total_bytes"]:
        parts = ", ".join(f"{page.as_bytes(n)} of {name}" for name, n in sent["by_type"].items())
        sentences.append(f"{page.as_bytes(sent['total_bytes'])} were sent in all: {parts}.")
    else:
        sentences.append("Nothing was sent.")
    seconds = timing["seconds_per_step"] * summary["steps"]
    sentences.append(
        f"Training took {_seconds(seconds)}, {1000 * timing['seconds_per_step']:.3g} ms a step, after "
        f"{_seconds(timing['compile_seconds'])} of compilation."
    )
    faults = summary.get("faults", {})
    if "links_lost" in faults:
        sentences.append(
            f"{faults['links_lost']:,} links were lost, and clients missed "
            f"{sum(faults['steps_missed']):,} steps in all."
        )
    for client, step in faults.get("quarantined", {}).items():
        sentences.append(f"Client {client} is in quarantine since step {step}.")
    return sentences


def partition_in_words(described: str) -> str:
    """Describes a partition of the library, given as in settings, in a phrase; others as they are."""
    named = re.fullmatch(r"(\w+)\((.*)\)", described)
    if named is None:
        return f"partition {described}"
    own = dict(part.split("=", 1) for part in named[2].split(", ") if "=" in part)
    if named[1] == "PrimaryLabels":
        drawn = ", drawn at random" if own["assignment"] == "'random'" else ""
        return (
            f"{own['labels_per_client']} primary labels each (skew {float(own['skew']):g}{drawn})"
        )
    if named[1] == "Dirichlet":
        return f"classes dealt by a Dirichlet distribution (α = {float(own['alpha']):g})"
    if named[1] == "Shards":
        return f"{own['shards_per_client']} shards of sorted samples each"
    return "samples dealt at random" if named[1] == "IID" else f"partition {described}"


def _accuracy_in_words(summary: Record) -> str:
    """Describes the accuracies of the last and the main head, and their differences."""

    def both(head: str, of: Record) -> str:
        values = {symbol: of[metric][head] for metric, symbol in SYMBOLS.items()}
        return " and ".join(f"{name} {x:.3f}" for name, x in values.items() if x is not None)

    honest = summary.get("honest")
    of, whose = (honest, "honest clients' ") if honest else (summary, "")
    heads = list(of["beta_sh"])
    first, last = heads[0], heads[-1]
    if first == last:
        return f"At the end, {whose or 'the '}only head has {both(first, of)}."
    gains = [
        f"{of[metric][last] - of[metric][first]:+.3f} in {symbol}".replace("-", "−")
        for metric, symbol in SYMBOLS.items()
        if of[metric][first] is not None
    ]
    best = max(heads, key=lambda head: of["beta_sh"][head])
    more = f" Of all heads, {best} has the highest β_sh, {of['beta_sh'][best]:.3f}."
    return (
        f"At the end, {whose or 'the '}last head, {last}, has {both(last, of)}; the main head has "
        f"{both(first, of)}: from main to last, {' and '.join(gains)}."
        f"{'' if best == last else more} {_guess(summary)}"
    )


def _guess(summary: Record) -> str:
    """Returns a sentence on what knows nothing of a sample."""
    if _targets(summary):
        return "Whoever predicts the mean of the targets has 0."
    return f"A guess has {chance(summary):.3g}."


def _what_is_compared(
    runs: Mapping[str, Sequence[FinishedRun]], differing: Mapping[str, Any]
) -> str:
    """Says what all rows have in common."""
    first = next(iter(runs.values()))[0].summary
    seeds = {tuple(run.summary["seed"] for run in each) for each in runs.values()}
    if len(seeds) > 1:
        return "Rows have other seeds; the links to their reports name them."
    if any(name.startswith("clients.") for name in differing):
        return "Clients or their data are not the same for all: see what differs."
    listed = ", ".join(map(str, next(iter(seeds))))
    return (
        f"{first['num_clients']} clients learned {first['dataset']}; clients, data splits, public "
        f"sets and seeds ({listed}) are the same for all."
    )


def _dot_plots(
    differences: Mapping[str, Mapping[str, Sequence[Any]]], rows: Sequence[str]
) -> dict[str, list[str]]:
    """Returns drawings of the differences to each baseline, one for each metric that has any."""
    styles = row_styles(rows)
    drawn: dict[str, list[str]] = {}
    for metric, by_baseline in differences.items():
        for baseline, found in by_baseline.items():
            if found:
                plot = dot_plots.differences(metric, baseline, found, styles)
                drawn.setdefault(baseline, []).append(plot)
    return drawn


def _further_tables(summary: Record) -> dict[str, page.Table]:
    """Returns the tables of metrics beside β_sh and β_priv, and of their spread over clients."""
    tables = {}
    own = {"β_own": summary["beta_own"]} if "beta_own" in summary else {}
    own |= summary.get("metrics", {})
    if own:
        tables["metrics"] = page.Table(
            "Further metrics at the end, mean over clients",
            ("head", *own),
            [
                [page.Cell(head), *(page.number(values[head]) for values in own.values())]
                for head in summary["beta_sh"]
            ],
        )
    if "fairness" in summary:
        names = {"worst": "worst client", "lowest_tenth": "lowest tenth", "std": "std over clients"}
        tables["fairness"] = page.Table(
            "Accuracy over clients at the end",
            ("metric", "head", *names.values()),
            [
                [
                    page.Cell(SYMBOLS[metric]),
                    page.Cell(head),
                    *(page.number(values[name]) for name in names),
                ]
                for metric, heads in summary["fairness"].items()
                for head, values in heads.items()
            ],
        )
    return tables


def _run_tables(summary: Record, described: Record | None) -> dict[str, page.Table]:
    """Returns the tables of a run's page by name."""
    heads = list(summary["beta_sh"])
    timing, sent = summary["timing"], summary["communication"]
    tables = {
        "heads": page.accuracies("Accuracy at the end, mean over clients", summary),
        **_further_tables(summary),
        "clients": page.Table(
            "Accuracy of each client at the end",
            ("client", "model", *(f"{s} {head}" for s in SYMBOLS.values() for head in heads)),
            [
                [
                    page.count(client["client"]),
                    page.Cell(client["model"]),
                    *(page.number(client[metric][head]) for metric in METRICS for head in heads),
                ]
                for client in summary["per_client"]
            ],
        ),
        "bytes_by_type": _shares("What was sent", "type", sent["by_type"]),
        "bytes_by_dtype": _shares("How numbers were sent", "as", sent.get("by_dtype", {})),
        "time": page.Table(
            "Compilation and training apart",
            ("what", "seconds"),
            [
                [page.Cell("compilation"), page.number(timing["compile_seconds"])],
                [
                    page.Cell("training, without compilation"),
                    page.number(timing["seconds_per_step"] * summary["steps"]),
                ],
                [page.Cell("one step"), page.number(timing["seconds_per_step"], 5)],
            ],
        ),
    }
    if described is not None:
        names = _class_names(summary)
        tables["data"] = page.Table(
            "Private data of each client",
            ("client", "samples", "classes", "entropy (bits)", "largest class", "its share"),
            [
                [
                    page.count(client["client"]),
                    page.count(client["samples"]),
                    page.count(client["classes"]),
                    page.number(client["entropy_bits"]),
                    page.Cell(names[client["largest_class"]]),
                    page.number(client["largest_share"]),
                ]
                for client in described["clients"]
            ],
        )
    return tables


def _held(classes: class_map.ClassMap | None) -> dict[str, page.Table]:
    """Returns the table of what clients know of classes that they hold, and of others."""
    if classes is None:
        return {}
    table = page.Table(
        "Accuracy at the end by whether the client holds the class, mean over pairs",
        ("head", "held classes", "other classes"),
        [[page.Cell(head), *map(page.number, classes.means(head))] for head in classes.accuracy],
    )
    return {"held": table}


def _shares(caption: str, what: str, parts: Mapping[str, int]) -> page.Table:
    """Returns a table of the parts of all bytes and of their shares, which sum to 1."""
    whole = max(sum(parts.values()), 1)
    return page.Table(
        caption,
        (what, "bytes", "share"),
        [
            [page.Cell(name), page.Cell(page.as_bytes(n), n, True), page.number(n / whole)]
            for name, n in parts.items()
        ],
    )


def _comparison_tables(
    folder: pathlib.Path,
    rows: Sequence[Record],
    runs: Mapping[str, Sequence[FinishedRun]],
    differing: Mapping[str, Sequence[Any]],
) -> dict[str, page.Table]:
    """Returns the tables of a comparison's page by name."""
    return {
        "accuracy": page.Table(
            "Accuracy at the end, mean over clients, ± standard deviation over seeds",
            ("algorithm", "head", "β_sh", "β_priv"),
            [
                [page.Cell(row["algorithm"]), page.Cell(head), *map(page.spread, values)]
                for row in rows
                for head, *values in accuracy_lines(row)
            ],
        ),
        "cost": page.Table(
            "Bytes and time: mean of the bytes and medians of the times over seeds",
            ("algorithm", "bytes sent", "compilation, s", "ms a step", "reports"),
            [
                [
                    page.Cell(row["algorithm"]),
                    page.Cell(page.as_bytes(row["total_bytes"]), row["total_bytes"], True),
                    page.number(row["compile_seconds"], 1),
                    page.number(1000 * row["seconds_per_step"], 2),
                    page.Cell(
                        "",
                        links=[
                            page.link(folder, run.path, f"seed {run.summary['seed']}")
                            for run in runs[row["algorithm"]]
                        ],
                    ),
                ]
                for row in rows
            ],
        ),
        "differing": page.Table(
            "Settings that differ",
            ("setting", *runs),
            [[page.Cell(name), *map(_setting, values)] for name, values in differing.items()],
        ),
    }


def _client_view(summary: Record, history: Sequence[Record]) -> dict[str, Any]:
    """Returns the data of all clients that the page's script shows, as JSON-like values."""
    heads = list(summary["beta_sh"])
    records = curves.moments(history)
    data = summary.get("data")
    samples = None
    if data is not None:
        counts = np.array(data["private_samples"])
        samples = (counts.sum(axis=0, keepdims=True) if _pooled(summary) else counts).tolist()
    clients: list[dict[str, Any]] = [
        {
            "name": "all, pooled" if _pooled(summary) else str(i),
            "facts": _facts(summary, i, samples),
            "curves": {
                metric: [
                    [curves.rounded(record["per_client"][metric][head][i]) for record in records]
                    for head in heads
                ]
                for metric in METRICS
            },
            "samples": samples and samples[i],
            "by_class": [
                [curves.rounded(x) for x in client["per_class_accuracy"][head]] for head in heads
            ],
        }
        for i, client in enumerate(summary["per_client"])
    ]
    steps = [record["step"] for record in records]
    panels = [
        {"label": label, "lines": [line for each in clients for line in each["curves"][metric]]}
        for metric, label in METRICS.items()
    ]
    return {
        "steps": steps,
        "heads": heads,
        "charts": curves.looks(heads, panels, steps, chance(summary)),
        "metrics": METRICS,
        "classes": _class_names(summary),
        "most_classes": _MOST_CLASSES,
        "clients": clients,
    }


def _facts(summary: Record, i: int, samples: Sequence[Sequence[int]] | None) -> dict[str, str]:
    """What the page says about a client besides its accuracies."""
    client, settings = summary["per_client"][i], summary["settings"]["clients"]
    facts = {"model": client["model"]}
    if samples is not None:
        held = np.array([samples[i]])
        classes = (held > 0).sum()
        facts["private data"] = (
            f"{held.sum():,} samples from {classes} {'class' if classes == 1 else 'classes'}"
        )
        facts["entropy of its labels"] = f"{partition_statistics.label_entropy(held)[0]:.3f} bits"
    if "objectives" in settings and not _pooled(summary):
        facts["learns from its data by"] = settings["objectives"][i]
    if str(i) in settings.get("adversaries", {}) and not _pooled(summary):
        facts["adversary"] = settings["adversaries"][str(i)]
    faults = summary.get("faults", {})
    if "steps_missed" in faults:
        facts["steps missed"] = f"{faults['steps_missed'][i]:,}"
    if str(i) in faults.get("quarantined", {}):
        facts["in quarantine since step"] = str(faults["quarantined"][str(i)])
    return facts


def _pooled(summary: Record) -> bool:
    """Returns whether one model was trained on the data of all clients."""
    return len(summary["per_client"]) < summary["num_clients"]


def _targets(summary: Record) -> list[Record] | None:
    """Returns the numbers that a regression predicts; None for classes."""
    return summary.get("data", {}).get("targets")


def _class_names(summary: Record) -> list[str]:
    """Returns the classes' names, or their numbers if the summary has no names."""
    if "data" in summary:
        return summary["data"]["class_names"]
    by_head = summary["per_client"][0]["per_class_accuracy"]
    return [str(c) for c in range(len(by_head["main"]))]


def _setting(value: Any) -> page.Cell:
    if isinstance(value, list):
        return page.Cell(", ".join(map(str, value)))
    return page.Cell("–" if value is None else str(value))


def _seconds(value: float) -> str:
    return f"{value:.3g} s" if value < 120 else f"{value / 60:.3g} min"


def save(
    folder: pathlib.Path, drawn: Mapping[str, Callable[[], Figure]]
) -> dict[str, dict[str, Any] | None]:
    """Writes figures as files; returns their data URIs and widths on the page by name.

    None stands for a figure that failed.
    """
    found: dict[str, dict[str, Any] | None] = {}
    for name, make in drawn.items():
        figure = save_figure(make, folder / name)
        if figure is None:
            found[name] = None
            continue
        drawing = (folder / f"{name}.svg").read_bytes()
        uri = "data:image/svg+xml;base64," + base64.b64encode(drawing).decode()
        found[name] = {"uri": uri, "width": round(_PAGE_DPI * figure.get_figwidth())}
    return found
