"""Small records of runs, for a repository: what tables and figures are made from.

RECORDS/CASE/seed_N.json is written the moment a run ends. It has the parts of the run's summary that
tables need, under the same names, the settings that decide its results, and where it ran; it names
no folder of the machine.
"""

from __future__ import annotations

import collections
import json
import pathlib
import platform
import re
import shlex
from collections.abc import Mapping
from typing import Any

import mhd_jax as mhd
from mhd_jax.cli.launch import num_cores
from mhd_jax.cli.settings import RunSettings
from mhd_jax.clients import of_each
from mhd_jax.core.files import make_folder
from mhd_jax.runs.environment import environment
from mhd_jax.runs.other_settings import differing_settings
from mhd_jax.runs.records import jsonable, read_json, write_text
from mhd_jax.runs.settings import flat
from mhd_jax.training import optim

Record = Mapping[str, Any]

_AS_THEY_ARE = ("algorithm", "dataset", "num_clients", "steps", "seed", "status")
_ACCURACIES = ("beta_sh", "beta_priv", "validation", "honest", "consensus", "by_hops")
_OF_A_CLIENT = ("client", "model", "beta_sh", "beta_priv")
_OF_MESSAGES = ("bytes_per_step_per_edge", "total_bytes", "by_type")
_OF_THE_MACHINE = ("python", "backend", "device", "num_devices", "versions", "git_commit")
_DECIMALS = 6
_LINE = 100  # characters


def path(records: pathlib.Path, case: str, seed: int) -> pathlib.Path:
    """Returns the file of a run's record; `case` is the folder of the case."""
    return records / case / f"seed_{seed}.json"


def record(
    case: str,
    seed: int,
    settings: Mapping[str, Any],
    summary: Mapping[str, Any] | None,
    reason: str = "",
) -> dict[str, Any]:
    """Returns the record of a run.

    Args:
      case: the case's name.
      seed: the run's seed.
      settings: the settings that decide its results.
      summary: its summary; None if it diverged.
      reason: why there is no summary.
    """
    here = environment()
    found: dict[str, Any] = {"case": case, "command": without_folders(here["command"] or "")}
    if summary is None:
        found |= {"seed": seed, "status": "diverged", "reason": reason}
    else:
        found |= {name: summary[name] for name in _AS_THEY_ARE}
        found |= {name: _shortened(summary[name]) for name in _ACCURACIES if name in summary}
        found["per_client"] = _shortened(
            [{name: each[name] for name in _OF_A_CLIENT} for each in summary["per_client"]]
        )
        sent = summary["communication"]
        found["communication"] = {name: sent[name] for name in _OF_MESSAGES}
        found["timing"] = _shortened(summary["timing"])
    machine = {name: here[name] for name in _OF_THE_MACHINE}
    found["machine"] = {"processor": processor(), "cores": num_cores(), **machine}
    return jsonable({**found, "settings": settings})


def read(file: pathlib.Path, settings: Mapping[str, Any]) -> Record | None:
    """Returns a run's record; None if there is none.

    Raises:
      mhd.ConfigError: the record is damaged, or one of a run with other settings.
    """
    if not file.exists():
        return None
    found = read_json(file)
    _require_same(file, found.get("settings", {}), settings)
    return found


def stored(
    records: pathlib.Path, case: str, settings: RunSettings, algorithm: mhd.Algorithm
) -> list[Record]:
    """Returns the records of a case, by seed.

    Raises:
      mhd.ConfigError: a record is damaged, or of a run with other settings, as far as these are known
        without data.
    """
    expected = flat(known_without_data(settings, algorithm))
    found = []
    for file in (records / case).glob("seed_*.json"):
        content = read_json(file)
        there = flat(content.get("settings", {}))
        _require_same(file, {name: there.get(name) for name in expected}, expected)
        found.append(content)
    return sorted(found, key=lambda each: each["seed"])


def write(file: pathlib.Path, record: Record) -> Record:
    """Writes a record atomically, and returns it."""
    make_folder(file.parent, "folder of records")
    write_text(file, f"{_lines(record)}\n")
    return record


def without_folders(command: str) -> str:
    """Returns a command in which DIR stands for the folders of absolute paths."""
    arguments = shlex.split(command)
    return shlex.join(re.sub(r"^(--?\w+=)?[/~].*/(?=.)", r"\1DIR/", each) for each in arguments)


def _require_same(
    file: pathlib.Path, there: Mapping[str, Any], settings: Mapping[str, Any]
) -> None:
    if differing := differing_settings(there, settings):
        raise mhd.ConfigError(
            f"{file} is of a run with other settings: {'; '.join(differing)}; choose another folder "
            "of records, or remove this one."
        )


def known_without_data(settings: RunSettings, algorithm: mhd.Algorithm) -> dict[str, Any]:
    """Returns those settings of a run, as in its `config.json`, that are known without its data."""
    models = collections.Counter(
        of_each(settings.model, settings.num_clients, "models", "resnet18:4,resnet34:4")
    )
    optimizer = optim.described(settings.optimizer)
    optimizer.pop("nesterov", None)  # the algorithm may decide
    return jsonable(
        {
            "algorithm": algorithm.name,
            "hyperparameters": algorithm.hyperparameters,
            "clients": {
                "dataset": settings.dataset,
                "num_clients": settings.num_clients,
                "models": [f"{name}:{count}" for name, count in models.items()],
                "partition": str(settings.partition),
                "validation_fraction": settings.validation_fraction,
            },
            "optimizer": optimizer,
            **{name: getattr(settings, name) for name in ("steps", "batch_size", "compute_dtype")},
        }
    )


def _lines(value: Any, indent: int = 0) -> str:
    """Returns JSON in which what fits has one line."""
    text = json.dumps(value, ensure_ascii=False)
    if not value or not isinstance(value, dict | list) or len(text) + indent <= _LINE:
        return text
    margin = " " * (indent + 1)
    if isinstance(value, dict):
        parts = [
            f"{margin}{json.dumps(name)}: {_lines(each, indent + 1)}"
            for name, each in value.items()
        ]
        return "{\n" + ",\n".join(parts) + f"\n{' ' * indent}}}"
    parts = [f"{margin}{_lines(each, indent + 1)}" for each in value]
    return "[\n" + ",\n".join(parts) + f"\n{' ' * indent}]"


def _shortened(value: Any) -> Any:
    """Returns a value whose numbers are rounded, without accuracies by class."""
    if isinstance(value, float):
        return round(value, _DECIMALS)
    if isinstance(value, Mapping):
        return {name: _shortened(v) for name, v in value.items() if name != "per_client"}
    return [_shortened(each) for each in value] if isinstance(value, list) else value


def processor() -> str:
    """Returns the name of this machine's processor."""
    try:
        text = pathlib.Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        text = ""
    named = re.search(r"model name\s*:\s*(.+)", text)
    return named[1] if named else platform.processor() or platform.machine()
