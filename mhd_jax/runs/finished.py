"""Reads finished runs from their folders."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from mhd_jax.core.errors import ConfigError
from mhd_jax.runs.records import read_json

UNFINISHED = "data-unfinished"  # in the first tag of the page of a run that has not finished
_FIRST_BYTES = 200  # of a page, which hold this tag
_OF_BOTH = ("beta_sh", "beta_priv")  # entries of a summary and of the last evaluation


@dataclasses.dataclass(frozen=True)
class FinishedRun:
    """The content of a finished run's folder.

    Attributes:
      path: the folder.
      config: the content of `config.json`.
      summary: the content of `summary.json`.
      history: the records of `metrics.jsonl`.
    """

    path: pathlib.Path
    config: Mapping[str, Any]
    summary: Mapping[str, Any]
    history: Sequence[Mapping[str, Any]]


def read_run(path: pathlib.Path) -> FinishedRun:
    """Reads a finished run's folder; `ConfigError` if it holds no run, or an unfinished one."""
    if not (path / "config.json").exists():
        raise ConfigError(f"{path} does not hold a run; name a folder that train has written.")
    if not (path / "summary.json").exists():
        raise ConfigError(
            f"the run in {path} has not finished; the command that started it takes it up again."
        )
    config = read_json(path / "config.json")
    if not isinstance(config.get("settings"), dict):
        raise ConfigError(f"{path} does not hold a whole run; name another folder.")
    summary, history = read_finished(path)
    return FinishedRun(path, config, summary, history)


def has_report(folder: pathlib.Path) -> bool:
    """Returns whether a folder holds the report of a finished run, not of one that goes on."""
    page = folder / "report.html"
    if not page.exists():
        return False
    with open(page, "rb") as file:
        return UNFINISHED.encode() not in file.read(_FIRST_BYTES)


def run_folders(given: Sequence[pathlib.Path]) -> list[pathlib.Path]:
    """Returns the run folders among the given folders and below them.

    Raises:
      ConfigError: a folder that does not exist, or without a run.
    """
    found: dict[pathlib.Path, pathlib.Path] = {}
    for folder in given:
        if not folder.is_dir():
            raise ConfigError(f"there is no folder {folder}; name folders of runs.")
        below = (
            [folder]
            if (folder / "config.json").exists()
            else sorted(path.parent for path in folder.rglob("config.json"))
        )
        if not below:
            raise ConfigError(
                f"{folder} holds no run; name a folder that train or compare has written."
            )
        found |= {path.resolve(): path for path in below}
    return list(found.values())


def read_history(path: pathlib.Path) -> list[dict[str, Any]]:
    """Reads the evaluations in a file, one a line, up to the first damaged line."""
    records = []
    if path.exists():
        for line in path.read_bytes().splitlines():
            try:
                record = json.loads(line)
            except (ValueError, RecursionError):
                break
            if not isinstance(record, dict) or not record.keys() >= {"step", *_OF_BOTH}:
                break
            records.append(record)
    return records


def read_finished(path: pathlib.Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Reads a folder's summary and evaluations; `ConfigError` if they do not match."""
    summary, history = read_json(path / "summary.json"), read_history(path / "metrics.jsonl")
    if summary.get("status") not in ("finished", "stopped"):
        raise ConfigError(
            f"{path / 'summary.json'} is damaged: it is not a finished run's. Put it back from a copy, "
            "or remove it and start the run again, to have it written anew."
        )
    last = history[-1] if history else {}
    same = all(key in summary and last.get(key) == summary[key] for key in _OF_BOTH)
    if not same or last.get("step") != summary.get("steps"):
        raise ConfigError(
            f"{path / 'summary.json'} and the last line of metrics.jsonl beside it differ: one of them "
            "is damaged. Put it back from a copy, or choose another folder."
        )
    return summary, history
