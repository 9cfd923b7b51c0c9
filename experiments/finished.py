"""Runs that have finished, from their folders: grouped by what they are, and compared."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import mhd_jax as mhd
from experiments.comparison import summarise, write
from mhd_jax import dotted
from mhd_jax.checkpoint import FinishedRun, read_json, read_run
from mhd_jax.files import make_folder

_MOST_TOLD = 3  # settings in a row's name


def read(folders: Sequence[pathlib.Path]) -> list[FinishedRun]:
    """The runs whose folders these are, or that lie below them.

    Raises:
      mhd.ConfigError: a folder without a run, or one that has not finished.
    """
    return [read_run(folder) for folder in _run_folders(folders)]


def compare(runs: Sequence[FinishedRun], output: pathlib.Path) -> list[dict[str, Any]]:
    """Writes a comparison of runs.

    Args:
      runs: finished ones.
      output: the folder to write to.

    Returns:
      A row for each group of runs that differ in their seed alone, as in table.json.

    Raises:
      mhd.ConfigError: a run that is named twice, or an output folder of something else.
    """
    rows = _named(_grouped(runs))
    _require_own(output)
    make_folder(output, "output folder")
    table = [summarise(name, [run.summary for run in each]) for name, each in rows.items()]
    common, differing = dotted.compared(rows)
    about = {
        "runs": {name: [str(run.path) for run in each] for name, each in rows.items()},
        "settings": common,
        "differing": {
            name: dict(zip(rows, values, strict=True)) for name, values in differing.items()
        },
    }
    write(output, table, rows, [], about)
    return table


def _run_folders(given: Sequence[pathlib.Path]) -> list[pathlib.Path]:
    """The folders of the runs that are there or below."""
    found: dict[pathlib.Path, pathlib.Path] = {}
    for folder in given:
        if not folder.is_dir():
            raise mhd.ConfigError(f"there is no folder {folder}; name folders of runs.")
        below = (
            [folder]
            if (folder / "config.json").exists()
            else sorted(path.parent for path in folder.rglob("config.json"))
        )
        if not below:
            raise mhd.ConfigError(
                f"{folder} holds no run; name a folder that train or compare has written."
            )
        found |= {path.resolve(): path for path in below}
    return list(found.values())


def _grouped(runs: Sequence[FinishedRun]) -> list[list[FinishedRun]]:
    """Runs that differ in their seed alone, each in the order of the seeds."""
    groups: dict[str, list[FinishedRun]] = {}
    for run in runs:
        groups.setdefault(_key(dotted.seedless(run.summary["settings"])[0]), []).append(run)
    found = []
    for each in groups.values():
        if len({_seeds(run) for run in each}) == len(each):
            found.append(each)
            continue
        # Graphs or splits of one's own, of which settings hold digests alone, are told apart by seed.
        apart: dict[str, list[FinishedRun]] = {}
        for run in each:
            apart.setdefault(_key(_drawn(run)), []).append(run)
        for alike in apart.values():
            if len({_seeds(run) for run in alike}) < len(alike):
                folders = " and ".join(str(run.path) for run in alike)
                raise mhd.ConfigError(f"{folders} hold the same run; name one of them.")
        found += apart.values()
    return [sorted(each, key=_seeds) for each in found]


def _key(settings: Mapping[str, Any]) -> str:
    return json.dumps(settings, sort_keys=True)


def _seeds(run: FinishedRun) -> tuple[int, int]:
    """Of training, and of the split; −1 where a file describes that."""
    settings = run.summary["settings"]
    return settings["seed"], settings["clients"].get("split_seed", -1)


def _drawn(run: FinishedRun) -> dict[str, Any]:
    """What a run's settings say of its split and graph beside the seeds."""
    drawn = dotted.seedless(run.summary["settings"])[1]
    return {name: value for name, value in drawn.items() if not name.endswith("seed")}


def _named(groups: Sequence[Sequence[FinishedRun]]) -> dict[str, Sequence[FinishedRun]]:
    """Rows by name: the algorithm, and what tells it from other rows of the same one."""
    by_algorithm: dict[str, list[Sequence[FinishedRun]]] = {}
    for group in groups:
        by_algorithm.setdefault(group[0].summary["algorithm"], []).append(group)
    named: dict[str, Sequence[FinishedRun]] = {}
    for algorithm, rivals in by_algorithm.items():
        rows = {str(place): group for place, group in enumerate(rivals)}
        differing = dotted.compared(rows)[1]
        told = {
            name.rpartition(".")[2]: values
            for name, values in differing.items()
            if not name.endswith("digest")
        }
        for place, group in enumerate(rivals):
            own = [f"{name}={values[place]}" for name, values in told.items()]
            short = f"{algorithm}, {', '.join(own)}" if 0 < len(own) <= _MOST_TOLD else ""
            if len(rivals) == 1:
                short = algorithm
            known = not short or short in named
            named[f"{algorithm} {place + 1}" if known else short] = group
    return named


def _require_own(output: pathlib.Path) -> None:
    """Raises `mhd.ConfigError` for a folder of something else."""
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return
    if not (output / "table.json").exists() or "runs" not in read_json(output / "table.json"):
        raise mhd.ConfigError(f"{output} holds something else; choose another --output.")
