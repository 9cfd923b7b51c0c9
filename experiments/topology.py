r"""Measures transitive learning: accuracy on classes that are held one, two, three … hops away.

  python -m experiments.topology --topologies=chain,ring,islands,complete --seeds=3

Each client holds classes that no other client has (--skew=inf), so that all its knowledge of other
classes came along edges. Flags are those of experiments.train, with other defaults: 5 clients,
disjoint classes, 4 auxiliary heads, all neighbours as teachers and no embedding distillation. The
same command again resumes an interrupted study.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from absl import flags

import mhd_jax as mhd
from experiments import flags as run_flags
from experiments import launch, seed_flags, tables
from experiments.comparison import as_cell, spread
from experiments.settings import RunSettings
from experiments.watching import watchers
from mhd_jax.core import multihost
from mhd_jax.core.files import folder_here
from mhd_jax.runs.drawing import Figure, save_figure
from mhd_jax.runs.figures import head_colours, legend_beside, line_styles
from mhd_jax.runs.records import write_json

_TOPOLOGIES = flags.DEFINE_list(
    "topologies", ["chain", "ring", "islands", "complete"], "Graphs to compare."
)
_ALGORITHMS = flags.DEFINE_list(
    "algorithms", ["mhd", "naive", "isolated"], "Algorithms to compare on each graph."
)
flags.adopt_module_key_flags(run_flags)
flags.adopt_module_key_flags(seed_flags)
flags.adopt_module_key_flags(launch)
# Defaults of flags and of hyperparameters that differ from those of experiments.train.
_FLAGS = {"num_clients": 5, "skew": float("inf")}
_HYPERPARAMETERS = {"num_aux_heads": 4, "nu_emb": 0.0, "num_targets": "all"}

Row = dict[str, Any]


def study(
    settings: RunSettings,
    topologies: Sequence[str],
    algorithms: Sequence[mhd.Algorithm],
    seeds: Sequence[int],
    workdir: pathlib.Path,
) -> list[Row]:
    """Trains every algorithm on every graph with every seed.

    Args:
      settings: the settings that all runs share, except the graph.
      topologies: names of graphs.
      algorithms: the algorithms, with their hyperparameters.
      seeds: seeds of data split and training.
      workdir: the folder that gets TOPOLOGY/ALGORITHM/seed_N for each run; finished runs are only
        read.

    Returns:
      A row for each graph, algorithm and distance: accuracy by head, mean and deviation over seeds.
    """
    graphs = {name: dataclasses.replace(settings, topology=name) for name in topologies}
    for each in graphs.values():  # check all before the first trains for hours
        for algorithm in algorithms:
            each.check(algorithm, seeds[0])
    rows = []
    total = len(graphs) * len(algorithms)
    for number, (name, algorithm) in enumerate(
        [(name, algorithm) for name in graphs for algorithm in algorithms], 1
    ):
        folders = [workdir / name / algorithm.name / f"seed_{seed}" for seed in seeds]
        watching = watchers(f"[{number}/{total}] {name}, {algorithm.name}")
        results = graphs[name].simulate(algorithm, seeds, folders, watching)
        tables = [
            {row["hops"]: row["accuracy"] for row in result.summary["by_hops"]}
            for result in results
        ]
        for hops in dict.fromkeys(hops for table in tables for hops in table):
            found = [table[hops] for table in tables if hops in table]
            rows.append(
                {
                    "topology": name,
                    "algorithm": algorithm.name,
                    "hops": hops,
                    "accuracy": {head: spread([a[head] for a in found]) for head in found[0]},
                }
            )
    return rows


def lines(rows: Sequence[Mapping[str, Any]], heads: Sequence[str]) -> list[list[str]]:
    """Returns the table's lines: graph, algorithm, hops, and a column for each head."""
    return [
        [
            row["topology"],
            row["algorithm"],
            "out of reach" if row["hops"] is None else str(row["hops"]),
            *(as_cell(row["accuracy"][head]) if head in row["accuracy"] else "" for head in heads),
        ]
        for row in rows
    ]


def figure(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Plots accuracy against hops, with a panel for each graph and a line for each MHD head."""
    graphs = list(dict.fromkeys(row["topology"] for row in rows))
    drawn = Figure(figsize=(3.4 * len(graphs) + 1.6, 3.6), layout="constrained")
    axes = drawn.subplots(1, len(graphs), sharey=True, squeeze=False)[0]
    others = [name for name in dict.fromkeys(row["algorithm"] for row in rows) if name != "mhd"]
    # The first colour is left out, as it is close to those of the heads.
    styles = dict(zip(others, line_styles(len(others) + 1)[1:], strict=True))
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
                values = [row["accuracy"][head] for row in own]
                style = styles[name] if name in others else {"color": colour, "marker": "."}
                axis.errorbar(
                    [row["hops"] for row in own],
                    [value["mean"] for value in values],
                    yerr=[value["std"] or 0.0 for value in values],
                    **style,
                    capsize=2,
                    label=name if name in others else f"mhd, {head}",
                )
        far = max(row["hops"] or 0 for row in rows if row["topology"] == graph)
        axis.set_xticks(np.arange(far + 1))
        axis.set_xlabel("hops to who holds the class")
        axis.set_title(graph)
        axis.grid(alpha=0.3)
        axis.set_ylim(-0.02, 1.02)
    axes[0].set_ylabel("test accuracy")
    legend_beside(drawn)
    return drawn


def main() -> None:
    """Runs the study that the flags describe, and writes accuracy by distance."""
    if flags.FLAGS["topology"].present:
        raise mhd.ConfigError(
            "this study takes --topologies, several of them; leave --topology out."
        )
    names = [name.strip() for name in _ALGORITHMS.value]
    algorithms = [
        run_flags.algorithm(name, strict=False, defaults=_HYPERPARAMETERS)[0] for name in names
    ]
    settings = run_flags.settings()
    workdir = folder_here(flags.FLAGS.workdir or "runs/topology", "--workdir")
    seeds = seed_flags.values()
    rows = study(settings, _TOPOLOGIES.value, algorithms, seeds, workdir)

    heads = max((list(row["accuracy"]) for row in rows), key=len)
    headings = ["graph", "algorithm", "hops", *heads]
    cells = lines(rows, heads)
    if multihost.is_main():
        write_json(workdir / "table.json", {"seeds": seeds, "rows": rows})
        (workdir / "table.md").write_text(tables.markdown(headings, cells), encoding="utf-8")
        save_figure(lambda: figure(rows), workdir / "hops")
    console = launch.console()
    title = f"accuracy by distance, mean ± std over {len(seeds)} seed(s)"
    console.print(tables.rich(headings, cells, title))
    console.print(f"plot: {workdir / 'hops.png'}", markup=False, soft_wrap=True)


if __name__ == "__main__":
    for name, value in _FLAGS.items():
        flags.FLAGS.set_default(name, value)
    launch.run(main, several_processes=True)
