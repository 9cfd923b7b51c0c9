"""The folder of a comparison: a folder for each run, table.json, table.md and the report."""

from __future__ import annotations

import hashlib
import pathlib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mhd_jax.core.errors import ConfigError
from mhd_jax.runs import settings as dotted
from mhd_jax.runs.decoration import decoration
from mhd_jax.runs.finished import FinishedRun
from mhd_jax.runs.records import read_json, write_json, write_text
from mhd_jax.studies import rows as table
from mhd_jax.studies import verdict

_LONGEST_NAME = 120  # characters of a folder's name
_FIGURES = ("comparison", "accuracy", "communication")
_OWN = {  # the files beside the folders of runs, and that by which a single run's folder is known
    *("table.json", "table.md", "report.html", "config.json"),
    *(f"{figure}.{ending}" for figure in _FIGURES for ending in ("png", "svg")),
}


def folder_name(name: str) -> str:
    """Returns a name of a row or a case as the name of a folder."""
    plain = re.sub(r"[^\w.=,+-]+", "_", name)
    if len(plain) <= _LONGEST_NAME:
        return plain
    return f"{plain[:_LONGEST_NAME]}_{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def require_folders(names: Iterable[str], what: str) -> None:
    """Raises `ConfigError` unless each name has a folder of its own, beside a study's own files.

    Args:
      names: of rows or cases, each once.
      what: the setting that gives them.
    """
    by_folder: dict[str, str] = {}
    for name in names:
        folder = folder_name(name)
        if folder in _OWN:
            raise ConfigError(
                f"{what}: {name!r} would be a folder in the place of the file {folder}; rename it."
            )
        other = by_folder.setdefault(folder, name)
        if other != name:
            raise ConfigError(
                f"{what}: {other!r} and {name!r} would share a folder; rename one of them."
            )


def run_folder(workdir: pathlib.Path, name: str, seed: int) -> pathlib.Path:
    """Returns the folder of a run in a comparison's folder."""
    return workdir / folder_name(name) / f"seed_{seed}"


def require_own(
    workdir: pathlib.Path,
    names: Sequence[str],
    seeds: Sequence[int],
    settings: Mapping[str, Any] | None = None,
) -> None:
    """Raises `ConfigError` if a folder's table has other content, which would be lost.

    Args:
      workdir: the comparison's folder.
      names: the rows of the table to come.
      seeds: its seeds.
      settings: its settings, where the folder's must be the same; run folders check their own.
    """
    if (workdir / "config.json").exists():
        raise ConfigError(f"{workdir} holds a single run; choose another workdir.")
    if not (workdir / "table.json").exists():
        return
    stored = read_json(workdir / "table.json")
    if not {"rows", "seeds", "settings"} <= stored.keys():
        raise ConfigError(f"{workdir} holds something else; choose another workdir.")
    there = stored["settings"]
    differing = [key for key in settings or {} if there.get(key) != (settings or {})[key]]
    lost = [row["algorithm"] for row in stored["rows"] if row["algorithm"] not in names]
    lost += [f"seed {seed}" for seed in stored["seeds"] if seed not in seeds]
    if differing or lost:
        what = f"other settings ({', '.join(differing)})" if differing else ", ".join(lost)
        raise ConfigError(
            f"{workdir} holds a comparison with {what}; choose another workdir"
            + ("." if differing else ", or name these too.")
        )


def settings_of(runs: Mapping[str, Sequence[FinishedRun]]) -> dict[str, Any]:
    """Returns the settings that rows of runs share, and those in which they differ, by row."""
    common, differing = dotted.compared(runs)
    by_row = {name: dict(zip(runs, values, strict=True)) for name, values in differing.items()}
    return {"settings": common, "differing": by_row}


def write(
    folder: pathlib.Path,
    rows: Sequence[Mapping[str, Any]],
    runs: Mapping[str, Sequence[FinishedRun]],
    notes: Sequence[str],
    about: Mapping[str, Any],
) -> None:
    """Writes table.json, with further entries `about` the comparison, table.md and the report."""
    summaries = verdict.by_seed(runs)
    said = verdict.in_words(summaries)
    content = {**about, "rows": rows, "verdict": said, "notes": list(notes)}
    write_json(folder / "table.json", content)
    write_text(folder / "table.md", table.markdown(rows, [*said, *notes]))
    again = "The tables are there; the same command tries again."
    with decoration(f"the report of {folder}", again):
        from mhd_jax.runs import report  # importing matplotlib is slow, and only reports need it

        differences = verdict.differences(summaries)
        report.write_comparison(folder, rows, runs, said, differences, notes)
