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

from collections.abc import Mapping, Sequence

from absl import flags

import mhd_jax as mhd
from mhd_jax.cli import launch, study
from mhd_jax.cli.settings import RunSettings
from mhd_jax.exchange.adversaries import KINDS
from mhd_jax.exchange.selection import TARGET_SELECTIONS
from mhd_jax.runs.drawing import Figure
from mhd_jax.runs.figures import accuracy_axis, row_styles
from mhd_jax.studies import over_seeds

_NUM_CLIENTS = 8
_COUNTS = flags.DEFINE_list("counts", ["0", "1", "2", "3"], "How many of the 8 clients lie.")
_KIND = flags.DEFINE_enum("kind", "label_flip", KINDS, "What they send.")
_SELECTIONS = flags.DEFINE_list("selections", list(TARGET_SELECTIONS), "Choices of targets.")
_SEEDS = flags.DEFINE_integer("seeds", 3, "How many seeds, counted from 0.", lower_bound=1)
_STEPS = flags.DEFINE_integer("steps", 2000, "Training steps.", lower_bound=1)
flags.DEFINE_string("workdir", "runs/adversaries", "Folder of the study.")

_DEFAULTS = "most_confident, Δ = 1"
_SILENT = "most_confident, liars silent"


def main() -> None:
    """Runs the study and writes its table and its plot."""
    workdir = study.workdir("runs/adversaries")
    counts = _counts()
    cases = {(name, count): _case(name, count) for count in counts for name in _lines()}
    runs = study.run(list(cases.values()), range(_SEEDS.value), workdir)
    found = {
        name: {count: _accuracy(runs[cases[name, count].name]) for count in counts}
        for name in _lines()
    }
    settings = {flag.name: flag.value for flag in (_KIND, _SEEDS, _STEPS)}
    table = study.Table(
        ["target_selection", *(f"{count} of {_NUM_CLIENTS}" for count in counts)],
        [
            [name, *(over_seeds.as_cell(each[count]) for count in counts)]
            for name, each in found.items()
        ],
        f"β_sh of honest clients' last head, others: {_KIND.value}",
    )
    content = {"settings": settings, "beta_sh": found}
    drawn = {"adversaries": lambda: figure(found)}
    study.publish(workdir, content, [table], drawn, name="adversaries")


def _counts() -> list[int]:
    try:
        counts = [int(count) for count in _COUNTS.value]
    except ValueError:
        raise mhd.ConfigError(f"--counts are numbers, not {','.join(_COUNTS.value)}.") from None
    if not counts or not all(0 <= count < _NUM_CLIENTS for count in counts):
        raise mhd.ConfigError(f"--counts must be in 0 … {_NUM_CLIENTS - 1}.")
    return counts


def _lines() -> dict[str, tuple[mhd.Algorithm, str]]:
    """Returns algorithms and kinds of adversary by the names of the table's lines."""

    def choosing(selection: str) -> mhd.Algorithm:
        return mhd.algorithms.mhd(target_selection=selection, num_targets="all")

    return {
        **{name: (choosing(name), _KIND.value) for name in _SELECTIONS.value},
        _DEFAULTS: (mhd.algorithms.mhd(), _KIND.value),
        _SILENT: (choosing("most_confident"), "nan"),
    }


def _case(name: str, count: int) -> study.Case:
    """Returns the case of a line of the table with a number of adversaries."""
    algorithm, kind = _lines()[name]
    liars = range(_NUM_CLIENTS - count, _NUM_CLIENTS)
    settings = RunSettings(
        num_clients=_NUM_CLIENTS,
        steps=_STEPS.value,
        adversaries=",".join(f"{liar}:{kind}" for liar in liars),
    )
    folder = f"{count} {_KIND.value}/{name.replace(' ', '_').replace(',', '')}"
    return study.Case(f"{count} × {kind}: {name}", folder, settings, algorithm)


def _accuracy(summaries: Sequence[study.Summary]) -> over_seeds.Statistic:
    """Returns β_sh of the honest clients' last head, mean and deviation over seeds."""
    honest = [summary.get("honest", summary)["beta_sh"] for summary in summaries]
    return list(over_seeds.by_head(honest).values())[-1]


def figure(found: Mapping[str, Mapping[int, over_seeds.Statistic]]) -> Figure:
    """Plots β_sh over the number of adversaries, with a line for each choice of targets."""
    drawn = Figure(figsize=(8, 4), layout="constrained")
    axis = drawn.subplots()
    for name, style in row_styles(list(found)).items():
        each = found[name]
        over_seeds.draw_line(axis, list(each), list(each.values()), **style, label=name)
    axis.set_xticks(list(next(iter(found.values()))))
    axis.set_xlabel(f"clients of {_NUM_CLIENTS} that lie ({_KIND.value})")
    accuracy_axis(axis, "β_sh, honest clients' last head")
    drawn.legend(fontsize="small", loc="outside right upper")
    return drawn


if __name__ == "__main__":
    launch.run(main, several_processes=True)
