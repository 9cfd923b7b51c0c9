r"""Measures who is fit to teach: rules by which heads choose among their teachers, side by side.

  python -m experiments.teachers --topologies=complete,ring --skews=100 --seeds=5

Isolated training, naive distillation and MHD learn the digits with several target selections, on every
graph and with every skew; seeds are the same for all. The table has β_sh and β_priv of the last head,
and the difference of β_sh to --reference, seed by seed, with its 95 % confidence interval. Where classes
are held by few clients (--skews=inf), a second table has the last head's accuracy by hops to a client
that holds the class. Algorithms that alternate between private and public steps take the public ones
on top, so that all see as many private samples. Flags are those of experiments.train, with other
defaults: no embedding distillation. The same command again resumes an interrupted study.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from absl import flags

import mhd_jax as mhd
from mhd_jax.cli import flags as run_flags
from mhd_jax.cli import launch, seed_flags, study
from mhd_jax.cli.settings import RunSettings
from mhd_jax.core import shown
from mhd_jax.data.partition import PrimaryLabels
from mhd_jax.runs.drawing import Figure
from mhd_jax.runs.figures import accuracy_axis, legend_above, row_styles
from mhd_jax.studies import over_seeds
from mhd_jax.studies.folder import folder_name, require_folders

# The rules: an algorithm and its hyperparameters by the names of the table's lines.
_ALL: dict[str, Any] = {"num_targets": "all"}
_NAIVE: dict[str, Any] = {"nu_naive": 1.0}
RULES: dict[str, tuple[str, dict[str, Any]]] = {
    "isolated": ("isolated", {}),
    "naive, confident, Δ = 1": ("naive", _NAIVE),
    "naive, confident": ("naive", {**_NAIVE, **_ALL}),
    "naive, mean": ("naive", {**_NAIVE, **_ALL, "target_selection": "mean"}),
    "naive, density ratio": ("naive", {**_NAIVE, **_ALL, "target_selection": "density_ratio"}),
    "confident, Δ = 1": ("mhd", {}),
    "confident": ("mhd", _ALL),
    "confident, calibrated": ("mhd", {**_ALL, "calibrate_every": 50}),
    "confidence-weighted": ("mhd", {**_ALL, "target_selection": "confidence_weighted"}),
    "mean": ("mhd", {**_ALL, "target_selection": "mean"}),
    "density ratio": ("mhd", {**_ALL, "target_selection": "density_ratio"}),
    "density ratio, own main head": (
        "mhd",
        {**_ALL, "target_selection": "density_ratio", "own_candidate": "main"},
    ),
    "density ratio, Δ = 1": ("mhd", {"target_selection": "density_ratio"}),
    "densest": ("mhd", {**_ALL, "target_selection": "densest"}),
    "fedmd": ("fedmd", {}),
    "idkd": ("idkd", {}),
    "selective_fd": ("selective_fd", {}),
    "ds_fl": ("ds_fl", {}),
    "ds_fl, mean": ("ds_fl", {"aggregation": "mean"}),
}
_DEFAULT = [
    "isolated",
    "naive, confident, Δ = 1",
    "naive, confident",
    "naive, mean",
    "naive, density ratio",
    "confident, Δ = 1",
    "confident",
    "mean",
    "density ratio",
    "density ratio, own main head",
]
# Hyperparameters that the rules' names tell, also where a rule leaves them as they are by default.
_NAMED = ("num_targets", "target_selection", "own_candidate", "aggregation")
_TOPOLOGIES = flags.DEFINE_list("topologies", ["complete", "ring"], "Graphs to compare.")
_SKEWS = flags.DEFINE_list("skews", ["100"], "Skews of the private labels, like 10,100,inf.")
_RULES = flags.DEFINE_string(
    "rules", ";".join(_DEFAULT), f"Lines of the table, with ; between them: {'; '.join(RULES)}."
)
_REFERENCE = flags.DEFINE_string(
    "reference", "density ratio", "The line with which the others are compared."
)
flags.adopt_module_key_flags(run_flags)
flags.adopt_module_key_flags(seed_flags)
flags.adopt_module_key_flags(launch)

Row = dict[str, Any]
Place = tuple[str, str]  # a graph and a skew


def main() -> None:
    """Runs the study that the flags describe, and writes its tables and its figure."""
    for taken, several in (("topology", "topologies"), ("skew", "skews")):
        if flags.FLAGS[taken].present:
            raise mhd.ConfigError(f"this study takes several; give --{several}, not --{taken}.")
    for listed in (_TOPOLOGIES, _SKEWS):
        run_flags.require_distinct(listed.name, listed.value)
    require_folders(_TOPOLOGIES.value, "--topologies")
    rules, settings = _rules(), run_flags.settings_by_graph(_TOPOLOGIES.value)
    places = [(graph, skew) for graph in settings for skew in _SKEWS.value]
    asked = {
        (place, rule): _case(settings[place[0]], place, rule) for place in places for rule in rules
    }
    workdir, seeds = study.workdir("runs/teachers"), seed_flags.values()
    found: dict[str, list[study.Summary]] = {}
    for outcome in study.explore(list(asked.values()), seeds, workdir):
        if outcome.summary is None:
            raise mhd.ConfigError(f"{outcome.case.name}: {outcome.reason}")
        found.setdefault(outcome.case.name, []).append(outcome.summary)
    rows = [
        _row(
            place, rule, found[asked[place, rule].name], found[asked[place, _REFERENCE.value].name]
        )
        for place in places
        for rule in rules
    ]
    shown = [_accuracies(rows, len(seeds))]
    if any(row["by_hops"] for row in rows):
        shown.append(_by_hops(rows))
    study.publish(
        workdir, {"seeds": list(seeds), "rows": rows}, shown, {"teachers": lambda: figure(rows)}
    )


def _rules() -> list[str]:
    rules = [name.strip() for name in _RULES.value.split(";")]
    for name in [*rules, _REFERENCE.value]:
        if name not in RULES:
            raise mhd.ConfigError(f"unknown rule {name!r}; choose among {'; '.join(RULES)}.")
    chosen = list(dict.fromkeys([*rules, _REFERENCE.value]))
    own = {*_NAMED, *(name for rule in chosen for name in RULES[rule][1])}
    run_flags.require_not_given(sorted(own - _NAIVE.keys()))  # a weight has no part in the names
    return chosen


def _case(settings: RunSettings, place: Place, rule: str) -> study.Case:
    """Returns a rule's case on a graph with a skew, of settings on this graph."""
    (graph, skew), (name, options) = place, RULES[rule]
    algorithm, _ = run_flags.algorithm(name, strict=False, defaults={"nu_emb": 0.0, **options})
    if not isinstance(settings.partition, PrimaryLabels):
        raise mhd.ConfigError(
            "this study deals primary labels, with the skews of --skews; leave --partition and --owners "
            "out."
        )
    try:
        labels = dataclasses.replace(settings.partition, skew=float(skew))
    except ValueError:
        raise mhd.ConfigError(f"--skews are numbers or inf, not {skew!r}.") from None
    own = dataclasses.replace(
        settings.of_equal_budget(algorithm),
        partition=labels,
        augment_public=settings.augment_public and algorithm.may_augment_public,
    )
    of_rule = rule.replace(" ", "_").replace(",", "").replace("=", "")
    folder = f"{folder_name(graph)}/skew_{skew}/{of_rule}"  # a graph may be a path
    return study.Case(f"{graph}, skew {skew}, {rule}", folder, own, algorithm)


def _row(
    place: Place, rule: str, summaries: Sequence[study.Summary], others: Sequence[study.Summary]
) -> Row:
    """Returns a line: accuracies of the last head, and the difference to the reference by seed."""
    last = list(summaries[0]["beta_sh"])[-1]
    of_reference = list(others[0]["beta_sh"])[-1]
    differences = [
        one["beta_sh"][last] - other["beta_sh"][of_reference]
        for one, other in zip(summaries, others, strict=True)
    ]
    by_hops: dict[int, list[float]] = {}
    for row in (row for summary in summaries for row in summary["by_hops"] or []):
        if row["hops"] is not None and math.isinf(float(place[1])):
            by_hops.setdefault(row["hops"], []).append(row["accuracy"][last])
    return {
        "topology": place[0],
        "skew": place[1],
        "rule": rule,
        "beta_sh": over_seeds.interval([summary["beta_sh"][last] for summary in summaries]),
        "beta_priv": over_seeds.interval([summary["beta_priv"][last] for summary in summaries]),
        "heads": over_seeds.by_head([summary["beta_sh"] for summary in summaries]),
        "difference": over_seeds.interval(differences),
        "by_hops": {hops: over_seeds.spread(each) for hops, each in by_hops.items()},
    }


def _accuracies(rows: Sequence[Row], num_seeds: int) -> study.Table:
    """Returns the table of accuracies."""
    lines = [
        [
            *(row["topology"], row["skew"], row["rule"]),
            over_seeds.as_cell(row["beta_sh"]),
            over_seeds.as_cell(row["beta_priv"]),
            ""
            if row["rule"] == _REFERENCE.value
            else over_seeds.as_cell(row["difference"], "+", over_seeds.OF_DIFFERENCES),
        ]
        for row in rows
    ]
    heading = f"β_sh, less that of {_REFERENCE.value}"
    title = f"last head, mean ± std [95 % interval] over {num_seeds} seed(s)"
    return study.Table(["graph", "skew", "rule", "β_sh", "β_priv", heading], lines, title)


def _by_hops(rows: Sequence[Row]) -> study.Table:
    """Returns the table of accuracies by hops to a client that holds the class."""
    far = sorted({hops for row in rows for hops in row["by_hops"]})
    lines = [
        [
            *(row["topology"], row["skew"], row["rule"]),
            *(
                over_seeds.as_cell(row["by_hops"][hops]) if hops in row["by_hops"] else ""
                for hops in far
            ),
        ]
        for row in rows
        if row["by_hops"]
    ]
    headings = ["graph", "skew", "rule", *(shown.counted(hops, "hop") for hops in far)]
    return study.Table(headings, lines, "accuracy of the last head by distance")


def figure(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Plots β_sh of the last head for each graph and skew, with a mark for each rule."""
    places = list(dict.fromkeys((row["topology"], row["skew"]) for row in rows))
    rules = list(dict.fromkeys(row["rule"] for row in rows))
    drawn = Figure(figsize=(1.1 * len(places) + 4, 4), layout="constrained")
    axis = drawn.subplots()
    for number, (rule, style) in enumerate(row_styles(rules).items()):
        own = {
            (row["topology"], row["skew"]): row["beta_sh"] for row in rows if row["rule"] == rule
        }
        beside = (number - (len(rules) - 1) / 2) * 0.07
        over_seeds.draw_line(
            axis,
            [place + beside for place in range(len(places))],
            [own[place] for place in places],
            **{**style, "linestyle": "none"},
            label=rule,
        )
    axis.set_xticks(range(len(places)), [f"{graph}\nskew {skew}" for graph, skew in places])
    accuracy_axis(axis, "β_sh of the last head")
    legend_above(drawn)
    return drawn


if __name__ == "__main__":
    launch.run(main, several_processes=True)
