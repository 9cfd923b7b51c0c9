"""What a run's folder holds, in one record: what `--json` prints of a run."""

from __future__ import annotations

import pathlib
from typing import Any

import mhd_jax as mhd
from mhd_jax.runs.finished import read_history, read_run
from mhd_jax.runs.records import read_json


def record(folder: pathlib.Path) -> dict[str, Any]:
    """Returns a run's summary with its folder and command; of an unfinished run, what there is.

    Raises:
      mhd.ConfigError: the folder is damaged.
    """
    config = read_json(folder / "config.json")
    settings = config.get("settings")
    if not isinstance(settings, dict) or not isinstance(settings.get("clients"), dict):
        raise mhd.ConfigError(f"{folder} does not hold a whole run; name another folder.")
    environment = config.get("environment", {})
    about = {"folder": str(folder), "command": environment.get("command")}
    if (folder / "summary.json").exists():
        return {**about, **read_run(folder).summary, "environment": environment}
    of_clients = {name: settings["clients"].get(name) for name in ("dataset", "num_clients")}
    of_run = {name: settings.get(name) for name in ("algorithm", "steps", "seed")}
    last = (read_history(folder / "metrics.jsonl") or [{"step": 0}])[-1]
    return {
        **about,
        **of_run,
        **of_clients,
        "status": "unfinished",
        **last,
        "settings": settings,
        "environment": environment,
    }
