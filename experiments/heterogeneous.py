r"""Studies ensembles of heterogeneous clients: what small and large models gain from each other.

  python -m experiments.heterogeneous --small=mlp_small --large=mlp_large --seeds=3 --workdir=runs/heterogeneous

All ensembles have the same clients, data and seeds; only the clients' models and objectives differ:
all small, all large, some of each, one client without labels, one self-supervised client, small
models averaged in pairs. Results are reported for each kind of client, and compared with the
clients at the same places in the ensemble of small models. Other flags are those of
experiments.train; the same command again resumes an interrupted study.
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
from mhd_jax.runs.figures import METRICS, head_colours
from mhd_jax.runs.records import write_json

_SMALL = flags.DEFINE_string("small", "mlp_small", "Backbone of the small clients.")
_LARGE = flags.DEFINE_string("large", "mlp_large", "Backbone of the large ones.")
_NUM_LARGE = flags.DEFINE_list(
    "num_large",
    [],
    "How many clients of a mixed ensemble are large, one ensemble for each number; by default one, "
    "and half of them.",
)
_CHOSEN = flags.DEFINE_list(
    "cases", [], "Which of the study's ensembles to train; by default all of them."
)
flags.adopt_module_key_flags(run_flags)
flags.adopt_module_key_flags(seed_flags)
flags.adopt_module_key_flags(launch)

_OURS = ("model", "objectives", "ensembles")  # flags that the study sets itself


@dataclasses.dataclass(frozen=True)
class Ensemble:
    """An ensemble of clients, and its run.

    Attributes:
      kinds: the kind of each client by its place: "small", "large", "small, unlabelled" ….
      settings, algorithm: the settings and the algorithm of the ensemble's run.
    """

    kinds: tuple[str, ...]
    settings: RunSettings
    algorithm: mhd.Algorithm


def ensembles(
    settings: RunSettings,
    algorithm: mhd.Algorithm,
    small: str,
    large: str,
    num_large: Sequence[int],
) -> dict[str, Ensemble]:
    """Returns the study's ensembles by name; the first, to compare with, has small clients only.

    Raises:
      mhd.ConfigError: a mixed ensemble without small or without large clients.
    """
    count = settings.num_clients
    if any(not 0 < number < count for number in num_large):
        raise mhd.ConfigError(
            f"--num_large must be in 1 … {count - 1} for {count} clients, not "
            f"{', '.join(map(str, num_large))}."
        )

    def alike(kind: str, model: str, by: mhd.Algorithm = algorithm) -> Ensemble:
        return Ensemble((kind,) * count, dataclasses.replace(settings, model=model), by)

    def mixed(number: int) -> Ensemble:
        few = count - number
        models = f"{small}:{few},{large}:{number}"
        kinds = ("small",) * few + ("large",) * number
        return Ensemble(kinds, dataclasses.replace(settings, model=models), algorithm)

    def with_one(objective: str) -> Ensemble:
        goals = f"supervised:{count - 1},{objective}:1"
        kinds = ("small",) * (count - 1) + (f"small, {objective}",)
        return Ensemble(
            kinds, dataclasses.replace(settings, model=small, objectives=goals), algorithm
        )

    alone = mhd.algorithms.isolated()
    in_pairs = mhd.algorithms.mhd(**{**algorithm.hyperparameters, "ensembles": 2})
    return {
        "small": alike("small", small),
        "large": alike("large", large),
        **{f"mixed_{number}": mixed(number) for number in num_large},
        **{objective: with_one(objective) for objective in ("unlabelled", "rotation", "simclr")},
        "pairs": alike("small", small, in_pairs),
        "small_isolated": alike("small", small, alone),
        "large_isolated": alike("large", large, alone),
    }


def study(
    chosen: Mapping[str, Ensemble], seeds: Sequence[int], workdir: pathlib.Path
) -> list[dict[str, Any]]:
    """Trains every ensemble with every seed.

    Args:
      chosen: ensembles by name; the others are compared with the first.
      seeds: seeds of data split and training.
      workdir: the folder that gets ENSEMBLE/seed_N for each run; finished runs are only read.

    Returns:
      For each ensemble and each kind of client in it, mean and standard deviation over seeds of
      the clients' mean β_sh and β_priv by head, and of the "gain": the last head's β_sh minus that
      of the clients at the same places in the first ensemble.
    """
    for ensemble in chosen.values():  # check all before the first trains for hours
        ensemble.settings.check(ensemble.algorithm, seeds[0])
    rows, first = [], None
    for number, (name, ensemble) in enumerate(chosen.items(), 1):
        folders = [workdir / name / f"seed_{seed}" for seed in seeds]
        watching = watchers(f"[{number}/{len(chosen)}] {name}")
        results = ensemble.settings.simulate(ensemble.algorithm, seeds, folders, watching)
        found = [result.summary["per_client"] for result in results]
        first = found if first is None else first
        for kind in dict.fromkeys(ensemble.kinds):
            places = [i for i, other in enumerate(ensemble.kinds) if other == kind]
            rows.append({"ensemble": name, "clients": kind, **_accuracies(found, first, places)})
    return rows


def _accuracies(
    found: Sequence[Any], first: Sequence[Any], places: Sequence[int]
) -> dict[str, Any]:
    """Returns accuracies and gain of the clients at `places`.

    `found` and `first` hold each seed's clients, of the ensemble and of the first one.
    """

    def of_seed(clients: Any, metric: str, head: str) -> float | None:
        values = [clients[i][metric][head] for i in places]
        known = [value for value in values if value is not None]
        return float(np.mean(known)) if known else None

    heads = list(found[0][0]["beta_sh"])
    last, last_of_first = heads[-1], list(first[0][0]["beta_sh"])[-1]
    gains = [
        of_seed(clients, "beta_sh", last) - of_seed(others, "beta_sh", last_of_first)  # type: ignore[operator]
        for clients, others in zip(found, first, strict=True)
    ]
    return {
        "places": list(places),
        **{
            metric: {head: spread([of_seed(c, metric, head) for c in found]) for head in heads}
            for metric in METRICS
        },
        "gain": spread(gains),
    }


_HEADINGS = ["ensemble", "clients", "β_sh main", "β_sh last head", "β_priv main", "gain, last head"]


def lines(rows: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Returns the table's lines under `_HEADINGS`."""
    found = []
    for row in rows:
        heads = list(row["beta_sh"])
        cells = (row["beta_sh"][heads[0]], row["beta_sh"][heads[-1]], row["beta_priv"][heads[0]])
        who = f"{len(row['places'])} {row['clients']}"
        found.append([row["ensemble"], who, *map(as_cell, cells), as_cell(row["gain"], sign="+")])
    return found


def figure(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Plots β_sh of each kind of client's main and last head, mean ± std over seeds."""
    drawn = Figure(figsize=(8, 1 + 0.45 * len(rows)), layout="constrained")
    axis = drawn.subplots()
    colours = dict(zip(("main", "last"), head_colours(2), strict=True))
    for place, row in enumerate(rows):
        heads = list(row["beta_sh"])
        for which, head in (("main", heads[0]), ("last", heads[-1])):
            value = row["beta_sh"][head]
            axis.errorbar(
                value["mean"],
                place,
                xerr=value["std"] or 0.0,
                fmt="o",
                capsize=3,
                color=colours[which],
                label=f"{which} head" if place == 0 else None,
            )
    axis.set_yticks(range(len(rows)), [f"{row['ensemble']}: {row['clients']}" for row in rows])
    axis.set_ylim(len(rows) - 0.5, -0.5)
    axis.set_xlim(0, 1.02)
    axis.set_xlabel(METRICS["beta_sh"])
    axis.grid(alpha=0.3)
    axis.legend(loc="lower left")
    return drawn


def main() -> None:
    """Trains the ensembles that the flags choose, and writes the table and the plot."""
    given = [f"--{name}" for name in _OURS if flags.FLAGS[name].present]
    if given:
        raise mhd.ConfigError(f"{', '.join(given)}: the study sets these itself; leave them out.")
    algorithm, _ = run_flags.algorithm("mhd", strict=True)
    settings = run_flags.settings()
    half = settings.num_clients // 2
    try:
        numbers = [int(number) for number in _NUM_LARGE.value] or sorted({1, half})
    except ValueError:
        raise mhd.ConfigError(f"--num_large takes numbers, not {_NUM_LARGE.value}.") from None
    known = ensembles(settings, algorithm, _SMALL.value, _LARGE.value, numbers)
    unknown = [name for name in _CHOSEN.value if name not in known]
    if unknown:
        raise mhd.ConfigError(f"--cases takes {', '.join(known)}; unknown: {', '.join(unknown)}.")
    chosen = {name: known[name] for name in known if not _CHOSEN.value or name in _CHOSEN.value}
    workdir = folder_here(flags.FLAGS.workdir or "runs/heterogeneous", "--workdir")
    seeds = seed_flags.values()
    rows = study(chosen, seeds, workdir)

    cells = lines(rows)
    if multihost.is_main():
        write_json(workdir / "table.json", {"seeds": seeds, "rows": rows})
        (workdir / "table.md").write_text(tables.markdown(_HEADINGS, cells), encoding="utf-8")
        save_figure(lambda: figure(rows), workdir / "heterogeneous")
    console = launch.console()
    title = f"MHD, mean ± std over {len(seeds)} seed(s)"
    console.print(tables.rich(_HEADINGS, cells, title))
    console.print(
        f"Gain: over who sits at the same places in the ensemble {next(iter(chosen))}.",
        markup=False,
    )
    console.print(f"plot: {workdir / 'heterogeneous.png'}", markup=False, soft_wrap=True)


if __name__ == "__main__":
    launch.run(main, several_processes=True)
