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
from collections.abc import Mapping, Sequence
from typing import Any

from absl import flags

import mhd_jax as mhd
from mhd_jax.cli import flags as run_flags
from mhd_jax.cli import launch, seed_flags, study
from mhd_jax.cli.settings import RunSettings
from mhd_jax.runs.accuracies import METRICS
from mhd_jax.runs.drawing import Figure
from mhd_jax.runs.figures import head_colours
from mhd_jax.studies import over_seeds
from mhd_jax.studies.over_seeds import as_cell, spread

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

_PAIRS = "pairs"
_OURS = ("model", "objectives", "ensembles", "average_every")  # flags that the study sets itself


@dataclasses.dataclass(frozen=True)
class Ensemble(study.Case):
    """An ensemble of clients.

    Attributes:
      kinds: the kind of each client by its place: "small", "large", "small, unlabelled" ….
    """

    kinds: tuple[str, ...] = ()


def ensembles(
    settings: RunSettings,
    algorithm: mhd.Algorithm,
    small: str,
    large: str,
    num_large: Sequence[int],
) -> list[Ensemble]:
    """Returns the study's ensembles; the first, to compare with, has small clients only.

    An odd number of clients makes no pairs.

    Raises:
      mhd.ConfigError: a mixed ensemble without small or without large clients.
    """
    count = settings.num_clients
    if any(not 0 < number < count for number in num_large):
        raise mhd.ConfigError(
            f"--num_large must be in 1 … {count - 1} for {count} clients, not "
            f"{', '.join(map(str, num_large))}."
        )

    def ensemble(
        name: str, kinds: Sequence[str], by: mhd.Algorithm = algorithm, **changes: str
    ) -> Ensemble:
        changed = dataclasses.replace(settings, **changes)  # type: ignore[arg-type]
        return Ensemble(name, name, changed, by, kinds=tuple(kinds))

    def mixed(number: int) -> Ensemble:
        few = count - number
        kinds = ["small"] * few + ["large"] * number
        return ensemble(f"mixed_{number}", kinds, model=f"{small}:{few},{large}:{number}")

    def with_one(objective: str) -> Ensemble:
        kinds = ["small"] * (count - 1) + [f"small, {objective}"]
        goals = f"supervised:{count - 1},{objective}:1"
        return ensemble(objective, kinds, model=small, objectives=goals)

    alone = mhd.algorithms.isolated(algorithm.hyperparameters["label_smoothing"])
    in_pairs = mhd.algorithms.mhd(**{**algorithm.hyperparameters, "ensembles": 2})
    all_small, all_large = ["small"] * count, ["large"] * count
    pairs = [] if count % 2 else [ensemble(_PAIRS, all_small, in_pairs, model=small)]
    return [
        ensemble("small", all_small, model=small),
        ensemble("large", all_large, model=large),
        *map(mixed, dict.fromkeys(num_large)),
        *map(with_one, ("unlabelled", "rotation", "simclr")),
        *pairs,
        ensemble("small_isolated", all_small, alone, model=small),
        ensemble("large_isolated", all_large, alone, model=large),
    ]


def rows_of(
    ensemble: Ensemble, summaries: Sequence[study.Summary], first: Sequence[study.Summary]
) -> list[dict[str, Any]]:
    """Returns a row for each kind of client in an ensemble, from its runs' summaries.

    A row has mean and standard deviation over seeds of the clients' mean β_sh and β_priv by head,
    and of the "gain": the last head's β_sh minus that of the clients at the same places in the
    `first` ensemble.
    """
    rows = []
    for kind in dict.fromkeys(ensemble.kinds):
        places = [i for i, other in enumerate(ensemble.kinds) if other == kind]
        own = [_mean_over(places, summary) for summary in summaries]
        others = [_mean_over(places, summary) for summary in first]
        gains = [_last(a) - _last(b) for a, b in zip(own, others, strict=True)]
        row = {"ensemble": ensemble.name, "clients": kind, "places": places}
        rows.append({**row, **over_seeds.accuracies(own), "gain": spread(gains)})
    return rows


def _mean_over(places: Sequence[int], summary: study.Summary) -> dict[str, Any]:
    """Returns a run's mean β_sh and β_priv by head, over the clients at `places`."""
    clients = [summary["per_client"][i] for i in places]
    return {
        metric: {
            head: spread([client[metric][head] for client in clients])["mean"]
            for head in clients[0][metric]
        }
        for metric in METRICS
    }


def _last(accuracies: Mapping[str, Any]) -> float:
    """Returns β_sh of the last head."""
    return list(accuracies["beta_sh"].values())[-1]


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
            style = {"color": colours[which], "label": f"{which} head" if place == 0 else None}
            over_seeds.draw_point(axis, place, row["beta_sh"][head], fmt="o", **style)
    names = [f"{row['ensemble']}: {row['clients']}" for row in rows]
    over_seeds.name_rows(axis, names, METRICS["beta_sh"])
    axis.set_xlim(0, 1.02)
    axis.legend(loc="lower left")
    return drawn


def main() -> None:
    """Trains the ensembles that the flags choose, and writes the table and the plot."""
    run_flags.require_not_given(_OURS)
    algorithm, _ = run_flags.algorithm("mhd", strict=True)
    settings = run_flags.settings()
    if settings.num_clients < 2:
        raise mhd.ConfigError(
            "the study mixes small and large clients; give --num_clients=2 or more."
        )
    half = settings.num_clients // 2
    try:
        numbers = [int(number) for number in _NUM_LARGE.value] or sorted({1, half})
    except ValueError:
        raise mhd.ConfigError(f"--num_large takes numbers, not {_NUM_LARGE.value}.") from None
    known = ensembles(settings, algorithm, _SMALL.value, _LARGE.value, numbers)
    names = [each.name for each in known]
    unknown = [name for name in _CHOSEN.value if name not in names]
    lacks_pairs = f"{settings.num_clients} clients do not make pairs"
    if _PAIRS in unknown:
        raise mhd.ConfigError(
            f"{lacks_pairs}; leave {_PAIRS} out of --cases, or choose an even --num_clients."
        )
    if unknown:
        raise mhd.ConfigError(f"--cases takes {', '.join(names)}; unknown: {', '.join(unknown)}.")
    chosen = [each for each in known if each.name in (_CHOSEN.value or names)]
    is_short = _PAIRS not in names and not _CHOSEN.value
    notes = [f"{lacks_pairs}: the case {_PAIRS} is left out."] if is_short else []
    workdir = study.workdir("runs/heterogeneous")
    seeds = seed_flags.values()
    found = study.run(chosen, seeds, workdir)
    first = found[chosen[0].name]
    rows = [row for each in chosen for row in rows_of(each, found[each.name], first)]
    title = f"MHD, mean ± std over {len(seeds)} seed(s); gain over the ensemble {chosen[0].name}"
    table = study.Table(_HEADINGS, lines(rows), title, notes)
    content = {"seeds": seeds, "rows": rows}
    study.publish(workdir, content, [table], {"heterogeneous": lambda: figure(rows)})


if __name__ == "__main__":
    launch.run(main, several_processes=True)
