"""Reads finished runs from their folders, groups them by their settings, and compares them."""

from __future__ import annotations

import functools
import json
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import mhd_jax as mhd
from mhd_jax.core.files import make_folder
from mhd_jax.runs import settings as dotted
from mhd_jax.runs.finished import FinishedRun, read_run, run_folders
from mhd_jax.runs.records import read_json
from mhd_jax.studies.folder import settings_of, write
from mhd_jax.studies.rows import stopped, summarise

_MOST_TOLD = 3  # the most settings in a row's name


def read(folders: Sequence[pathlib.Path]) -> tuple[list[FinishedRun], list[pathlib.Path]]:
    """Reads the finished runs in or below folders; also returns folders of unfinished runs.

    Raises:
      mhd.ConfigError: a folder without a run, or no finished run in all folders.
    """
    found = run_folders(folders)
    others = [folder for folder in found if not (folder / "summary.json").exists()]
    chosen = [folder for folder in found if folder not in others]
    return [read_run(folder) for folder in chosen or found], others


def compare(runs: Sequence[FinishedRun], output: pathlib.Path) -> list[dict[str, Any]]:
    """Writes a comparison of finished runs.

    Args:
      runs: the runs.
      output: the folder to write to.

    Returns:
      A row for each group of runs that differ only in their seed, as in table.json.

    Raises:
      mhd.ConfigError: a run that is named twice, or an output folder with other content.
    """
    rows = _named(_grouped(runs))
    _require_own(output)
    make_folder(output, "output folder")
    table = [summarise(name, [run.summary for run in each]) for name, each in rows.items()]
    paths = {name: [str(run.path) for run in each] for name, each in rows.items()}
    about = {"runs": paths, **settings_of(rows)}
    write(output, table, rows, _stopped(rows), about)
    return table


def notes(runs: Sequence[FinishedRun]) -> list[str]:
    """Returns the sentences below the table of these runs: which of them were stopped."""
    return _stopped(_named(_grouped(runs)))


def _stopped(rows: Mapping[str, Sequence[FinishedRun]]) -> list[str]:
    return stopped({name: [run.summary for run in each] for name, each in rows.items()})


def _grouped(runs: Sequence[FinishedRun]) -> list[list[FinishedRun]]:
    """Groups runs that differ only in their seed; groups are sorted by seed."""
    found = []
    for each in _by(runs, dotted.seedless):
        groups = [each]
        # Users' own graphs and splits are known only by digests; but digests of random graphs and
        # splits change with the seed, too.
        for names in (("topology.digest",), dotted.DRAWN):
            if not all(map(_seeds_differ, groups)):
                groups = _by(each, functools.partial(_some, names))
        for group in groups:
            if not _seeds_differ(group):
                folders = " and ".join(str(run.path) for run in group)
                raise mhd.ConfigError(f"{folders} hold the same run; name one of them.")
        found += groups
    return [sorted(group, key=_seeds) for group in found]


def _by(
    runs: Sequence[FinishedRun], part: Callable[[Mapping[str, Any]], Mapping[str, Any]]
) -> list[list[FinishedRun]]:
    """Groups runs by a part of their settings."""
    groups: dict[str, list[FinishedRun]] = {}
    for run in runs:
        key = json.dumps(part(run.summary["settings"]), sort_keys=True)
        groups.setdefault(key, []).append(run)
    return list(groups.values())


def _some(names: Sequence[str], settings: Mapping[str, Any]) -> dict[str, Any]:
    found = dotted.flat(settings)
    return {name: found.get(name) for name in names}


def _seeds(run: FinishedRun) -> tuple[int, int]:
    """Returns the seeds of training and of the split; −1 for a split from a file."""
    settings = run.summary["settings"]
    return settings["seed"], settings["clients"].get("split_seed", -1)


def _seeds_differ(runs: Sequence[FinishedRun]) -> bool:
    return len({_seeds(run) for run in runs}) == len(runs)


def _named(groups: Sequence[Sequence[FinishedRun]]) -> dict[str, Sequence[FinishedRun]]:
    """Returns rows by name: the algorithm, and settings in which its rows differ."""
    by_algorithm: dict[str, list[Sequence[FinishedRun]]] = {}
    for group in groups:
        by_algorithm.setdefault(group[0].summary["algorithm"], []).append(group)
    named: dict[str, Sequence[FinishedRun]] = {}
    for algorithm, rivals in by_algorithm.items():
        rows = {str(place): group for place, group in enumerate(rivals)}
        differing = dotted.compared(rows)[1]
        told = {
            name.removesuffix(".name").rpartition(".")[2]: values
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
    """Raises `mhd.ConfigError` if the output folder has content other than a comparison."""
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return
    if not (output / "table.json").exists() or "runs" not in read_json(output / "table.json"):
        raise mhd.ConfigError(f"{output} holds something else; choose another --output.")
