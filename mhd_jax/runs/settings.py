"""Settings of runs by dotted name: what they have in common, what differs, what follows from the seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mhd_jax.runs.finished import FinishedRun

# Settings that are drawn by the seeds, or by a file or function of the user's.
DRAWN = (
    "clients.split_digest",
    "clients.public_digest",
    "clients.label_sets",
    "topology.digest",
)
_OF_THE_SEED = {"seed", "clients.split_seed", *DRAWN}


def flat(nested: Mapping[str, Any], separator: str = ".") -> dict[str, Any]:
    """Nested mappings as one level of names: {"a": {"b": 1}} as {"a.b": 1}."""
    found: dict[str, Any] = {}
    for key, value in nested.items():
        if isinstance(value, Mapping):
            inner = flat(value, separator)
            found.update({f"{key}{separator}{name}": entry for name, entry in inner.items()})
        else:
            found[key] = value
    return found


def seedless(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings by dotted name, without those that are a seed or follow from one."""
    return {name: value for name, value in flat(settings).items() if name not in _OF_THE_SEED}


def compared(
    runs: Mapping[str, Sequence[FinishedRun]],
) -> tuple[dict[str, Any], dict[str, list[Any]]]:
    """Settings that all runs have in common, and those that differ between rows.

    Args:
      runs: by row; those of one row differ in their seeds.

    Returns:
      Dotted names with their values, and with the values of each row; a setting that a row does not
      have is None. Where rows have other seeds, what follows from the seed is left out.
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
    """A row's settings: a list of the runs' values where these differ."""
    each = [flat(run.summary["settings"]) for run in runs]
    return {
        name: value
        if all(other.get(name) == value for other in each)
        else [other.get(name) for other in each]
        for name, value in each[0].items()
    }
