"""Comparison of runs' settings, by dotted name: common, differing, and dependent on the seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mhd_jax.runs.finished import FinishedRun

# Settings that follow from the seeds, or from a file or function of the user.
DRAWN = (
    "clients.split_digest",
    "clients.public_digest",
    "clients.label_sets",
    "topology.digest",
)
_OF_THE_SEED = {"seed", "clients.split_seed", *DRAWN}


def flat(nested: Mapping[str, Any], separator: str = ".") -> dict[str, Any]:
    """Flattens nested mappings, joining their names: {"a": {"b": 1}} becomes {"a.b": 1}."""
    found: dict[str, Any] = {}
    for key, value in nested.items():
        if isinstance(value, Mapping):
            inner = flat(value, separator)
            found.update({f"{key}{separator}{name}": entry for name, entry in inner.items()})
        else:
            found[key] = value
    return found


def seedless(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Returns settings by dotted name, without seeds and settings that follow from a seed."""
    return {name: value for name, value in flat(settings).items() if name not in _OF_THE_SEED}


def compared(
    runs: Mapping[str, Sequence[FinishedRun]],
) -> tuple[dict[str, Any], dict[str, list[Any]]]:
    """Returns the settings that all runs share, and those that differ between rows.

    Args:
      runs: the runs of each row of a comparison; runs of one row differ in their seeds.

    Returns:
      Two dictionaries by dotted name: common values, and lists of each row's value, None for a
      setting that a row lacks. If rows have different seeds, settings that follow from the seed
      are left out.
    """
    of_rows = [_row_settings(each) for each in runs.values()]
    seeds = [[run.summary["seed"] for run in each] for each in runs.values()]
    names = dict.fromkeys(name for settings in of_rows for name in settings)
    if any(other != seeds[0] for other in seeds):
        names = {name: None for name in names if name not in _OF_THE_SEED}
    common: dict[str, Any] = {}
    differing: dict[str, list[Any]] = {}
    for name in names:
        values = [settings.get(name) for settings in of_rows]
        if all(value == values[0] for value in values):
            common[name] = values[0]
        else:
            differing[name] = values
    return common, differing


def _row_settings(runs: Sequence[FinishedRun]) -> dict[str, Any]:
    """Returns a row's settings by dotted name; values that differ between runs become a list."""
    each = [flat(run.summary["settings"]) for run in runs]
    return {
        name: value
        if all(other.get(name) == value for other in each)
        else [other.get(name) for other in each]
        for name, value in each[0].items()
    }
