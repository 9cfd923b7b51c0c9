r"""Measures transitive learning: accuracy on classes that are held one, two, three … hops away.

  mhd topology --topologies=chain,ring,islands,complete --seeds=3

Each client holds classes that no other client has (--skew=inf), so that all its knowledge of other
classes came along edges. Flags are those of mhd train, with other defaults: 5 clients,
disjoint classes, 4 auxiliary heads, all neighbours as teachers and no embedding distillation. A
hyperparameter, or an option of a graph, applies to what has it. The same command again resumes an
interrupted study.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from absl import flags

import mhd_jax as mhd
from mhd_jax.cli import flags as run_flags
from mhd_jax.cli import launch, seed_flags, study, workdirs
from mhd_jax.cli.settings import RunSettings
from mhd_jax.runs.drawing import Figure
from mhd_jax.runs.figures import head_colours, legend_above, row_styles
from mhd_jax.studies import over_seeds
from mhd_jax.studies.folder import folder_name, require_folders
from mhd_jax.studies.rows import stopped

_TOPOLOGIES = flags.DEFINE_list(
    "topologies", ["chain", "ring", "islands", "complete"], "Graphs to compare."
)
_ALGORITHMS = flags.DEFINE_list(
    "algorithms", ["mhd", "naive", "isolated"], "Algorithms to compare on each graph."
)
flags.adopt_module_key_flags(run_flags)
flags.adopt_module_key_flags(seed_flags)
flags.adopt_module_key_flags(launch)
# Defaults of flags and of hyperparameters that differ from those of train.
_FLAGS = {"num_clients": 5, "skew": float("inf")}
_HYPERPARAMETERS = {"num_aux_heads": 4, "nu_emb": 0.0, "num_targets": "all"}

Row = dict[str, Any]


def cases(
    settings: Mapping[str, RunSettings], algorithms: Sequence[mhd.Algorithm]
) -> list[study.Case]:
    """Returns every algorithm on every graph, whose settings are by the graph's name."""
    return [
        study.Case(
            f"{name}, {algorithm.name}",
            f"{folder_name(name)}/{folder_name(algorithm.name)}",  # a graph may be a path
            own,
            algorithm,
        )
        for name, own in settings.items()
        for algorithm in algorithms
    ]


def rows_of(case: study.Case, summaries: Sequence[study.Summary]) -> list[Row]:
    """Returns a row for each distance: accuracy by head, mean and deviation over seeds."""
    by_hops: dict[int | None, list[Any]] = {}
    for row in (row for summary in summaries for row in summary["by_hops"]):
        by_hops.setdefault(row["hops"], []).append(row["accuracy"])
    about = {"topology": case.settings.topology, "algorithm": case.algorithm.name}
    return [
        {**about, "hops": hops, "accuracy": over_seeds.by_head(accuracies)}
        for hops, accuracies in by_hops.items()
    ]


def lines(rows: Sequence[Mapping[str, Any]], heads: Sequence[str]) -> list[list[str]]:
    """Returns the table's lines: graph, algorithm, hops, and a column for each head."""
    return [
        [
            row["topology"],
            row["algorithm"],
            "out of reach" if row["hops"] is None else str(row["hops"]),
            *(
                over_seeds.as_cell(row["accuracy"][head]) if head in row["accuracy"] else ""
                for head in heads
            ),
        ]
        for row in rows
    ]


def figure(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Plots accuracy against hops, with a panel for each graph and a line for each MHD head."""
    graphs = list(dict.fromkeys(row["topology"] for row in rows))
    drawn = Figure(figsize=(3.4 * len(graphs) + 1.6, 3.6), layout="constrained")
    axes = drawn.subplots(1, len(graphs), sharey=True, squeeze=False)[0]
    others = [name for name in dict.fromkeys(row["algorithm"] for row in rows) if name != "mhd"]
    styles = row_styles(others)
    for axis, graph in zip(axes, graphs, strict=True):
        for name in dict.fromkeys(row["algorithm"] for row in rows):
            own = [
                row
                for row in rows
                if (row["topology"], row["algorithm"]) == (graph, name) and row["hops"] is not None
            ]
            heads = list(own[0]["accuracy"])
            colours = head_colours(len(heads))
            for head, colour in zip(heads, colours, strict=False):
                style = styles[name] if name in others else {"color": colour, "marker": "."}
                over_seeds.draw_line(
                    axis,
                    [row["hops"] for row in own],
                    [row["accuracy"][head] for row in own],
                    **style,
                    label=name if name in others else f"mhd, {head}",
                )
        far = max(row["hops"] or 0 for row in rows if row["topology"] == graph)
        axis.set_xticks(np.arange(far + 1))
        axis.set_xlabel("hops to who holds the class")
        axis.set_title(graph)
        axis.grid(alpha=0.3)
        axis.set_ylim(-0.02, 1.02)
    axes[0].set_ylabel("test accuracy")
    legend_above(drawn)
    return drawn


def main() -> None:
    """Runs the study that the flags describe, and writes accuracy by distance."""
    if flags.FLAGS["topology"].present:
        raise mhd.ConfigError(
            "this study takes --topologies, several of them; leave --topology out."
        )
    run_flags.require_distinct("topologies", _TOPOLOGIES.value)
    require_folders(_TOPOLOGIES.value, "--topologies")
    algorithms, unused = run_flags.algorithms(_ALGORITHMS.value, _HYPERPARAMETERS)
    unused |= {name: run_flags.unused_by_topology(name) for name in _TOPOLOGIES.value}
    notes = run_flags.notes_on_unused(unused)
    graphs = cases(run_flags.settings_by_graph(_TOPOLOGIES.value), list(algorithms.values()))
    workdir = workdirs.chosen("topology")
    seeds = seed_flags.values()
    found = study.run(graphs, seeds, workdir)
    notes += stopped(found)
    rows = [row for case in graphs for row in rows_of(case, found[case.name])]
    heads = max((list(row["accuracy"]) for row in rows), key=len)
    title = f"accuracy by distance, mean ± std over {len(seeds)} seed(s)"
    table = study.Table(["graph", "algorithm", "hops", *heads], lines(rows, heads), title, notes)
    content = {"seeds": seeds, "rows": rows, "notes": notes}
    study.publish(workdir, content, [table], {"hops": lambda: figure(rows)})


def start() -> None:
    """Starts the command on the arguments of this process."""
    for name, value in _FLAGS.items():
        flags.FLAGS.set_default(name, value)
    launch.run(main, several_processes=True)
