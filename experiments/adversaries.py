r"""Measures how robust MHD's choices of targets are to a number of adversaries.

  python -m experiments.adversaries --workdir=runs/adversaries

The demo's clients learn the digits by MHD, and the last ones are adversaries, which send false
predictions of one kind. Accuracies are those of the honest clients. Targets are chosen among all
neighbours (--num_targets=all). For comparison, the table also has MHD's defaults, and the most
confident choice with adversaries that are recognised, because they send only NaN. The folder gets
adversaries.json, adversaries.md, adversaries.png and .svg. The same command again resumes an
interrupted study.
"""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import Any

from absl import flags

import mhd_jax as mhd
from experiments import launch, tables
from experiments.comparison import as_cell, summarise
from experiments.settings import RunSettings
from experiments.watching import watchers
from mhd_jax.core import multihost
from mhd_jax.core.files import folder_here
from mhd_jax.exchange.adversaries import KINDS
from mhd_jax.exchange.selection import TARGET_SELECTIONS
from mhd_jax.runs.drawing import Figure, save_figure
from mhd_jax.runs.figures import line_styles
from mhd_jax.runs.records import write_json

_NUM_CLIENTS = 8
_COUNTS = flags.DEFINE_list("counts", ["0", "1", "2", "3"], "How many of the 8 clients lie.")
_KIND = flags.DEFINE_enum("kind", "label_flip", KINDS, "What they send.")
_SELECTIONS = flags.DEFINE_list("selections", list(TARGET_SELECTIONS), "Choices of targets.")
_SEEDS = flags.DEFINE_integer("seeds", 3, "How many seeds, counted from 0.", lower_bound=1)
_STEPS = flags.DEFINE_integer("steps", 2000, "Training steps.", lower_bound=1)
_WORKDIR = flags.DEFINE_string("workdir", "runs/adversaries", "Folder of the study.")

_DEFAULTS = "most_confident, Δ = 1"
_SILENT = "most_confident, liars silent"
Found = dict[str, dict[int, Any]]


def main() -> None:
    """Runs the study and writes its table and its plot."""
    console = launch.console()
    workdir = folder_here(_WORKDIR.value, "--workdir")
    counts = _counts()
    found: Found = {}
    for count in counts:
        for name, (algorithm, kind) in _cases().items():
            folder = workdir / f"{count} {_KIND.value}" / name.replace(" ", "_").replace(",", "")
            label = f"{count} × {kind}: {name}"
            found.setdefault(name, {})[count] = _run(algorithm, kind, count, folder, label)
    settings = {flag.name: flag.value for flag in (_KIND, _SEEDS, _STEPS)}
    lines = [[name, *(as_cell(each[count]) for count in counts)] for name, each in found.items()]
    headings = ["target_selection", *(f"{count} of {_NUM_CLIENTS}" for count in counts)]
    if multihost.is_main():
        write_json(workdir / "adversaries.json", {"settings": settings, "beta_sh": found})
        (workdir / "adversaries.md").write_text(tables.markdown(headings, lines), encoding="utf-8")
        save_figure(lambda: figure(found), workdir / "adversaries")
    title = f"β_sh of honest clients' last head, others: {_KIND.value}"
    console.print(tables.rich(headings, lines, title))
    console.print(f"plot: {workdir / 'adversaries.png'}", markup=False, soft_wrap=True)


def _counts() -> list[int]:
    try:
        counts = [int(count) for count in _COUNTS.value]
    except ValueError:
        raise mhd.ConfigError(f"--counts are numbers, not {','.join(_COUNTS.value)}.") from None
    if not counts or not all(0 <= count < _NUM_CLIENTS for count in counts):
        raise mhd.ConfigError(f"--counts must be in 0 … {_NUM_CLIENTS - 1}.")
    return counts


def _cases() -> dict[str, tuple[mhd.Algorithm, str]]:
    """Returns algorithms and kinds of adversary by the names of the table's lines."""

    def choosing(selection: str) -> mhd.Algorithm:
        return mhd.algorithms.mhd(target_selection=selection, num_targets="all")

    return {
        **{name: (choosing(name), _KIND.value) for name in _SELECTIONS.value},
        _DEFAULTS: (mhd.algorithms.mhd(), _KIND.value),
        _SILENT: (choosing("most_confident"), "nan"),
    }


def _run(
    algorithm: mhd.Algorithm, kind: str, count: int, folder: pathlib.Path, label: str
) -> dict[str, float | None]:
    """Trains and returns β_sh of the honest clients' last head, mean and deviation over seeds."""
    liars = range(_NUM_CLIENTS - count, _NUM_CLIENTS)
    settings = RunSettings(
        num_clients=_NUM_CLIENTS,
        steps=_STEPS.value,
        adversaries=",".join(f"{liar}:{kind}" for liar in liars),
    )
    seeds = range(_SEEDS.value)
    folders = [folder / f"seed_{seed}" for seed in seeds]
    results = settings.simulate(algorithm, seeds, folders, watchers(label))
    row = summarise(algorithm.name, [result.summary for result in results])
    return list(row.get("honest", row)["beta_sh"].values())[-1]


def figure(found: Mapping[str, Mapping[int, Mapping[str, Any]]]) -> Figure:
    """Plots β_sh over the number of adversaries, with a line for each choice of targets."""
    drawn = Figure(figsize=(8, 4), layout="constrained")
    axis = drawn.subplots()
    for (name, each), style in zip(found.items(), line_styles(len(found)), strict=True):
        axis.errorbar(
            list(each),
            [value["mean"] for value in each.values()],
            yerr=[value["std"] or 0.0 for value in each.values()],
            **style,
            capsize=3,
            label=name,
        )
    axis.set_xticks(list(next(iter(found.values()))))
    axis.set_xlabel(f"clients of {_NUM_CLIENTS} that lie ({_KIND.value})")
    axis.set_ylabel("β_sh, honest clients' last head")
    axis.set_ylim(0, 1.02)
    axis.grid(alpha=0.3)
    drawn.legend(fontsize="small", loc="outside right upper")
    return drawn


if __name__ == "__main__":
    launch.run(main, several_processes=True)
