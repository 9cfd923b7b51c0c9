"""Shows what run folders hold, here in the terminal.

  mhd show runs/mhd
  mhd show runs/compare --json

A folder holds a run, or several runs below it, like that of a comparison, whose table comes first. A
run that has not finished is shown as far as it got.
"""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from absl import flags
from rich.filesize import decimal

import mhd_jax as mhd
from mhd_jax.cli import json_flag, launch
from mhd_jax.cli.run_record import record
from mhd_jax.core.files import folder_here
from mhd_jax.runs.accuracies import accuracy_lines
from mhd_jax.runs.finished import run_folders
from mhd_jax.studies import tables

flags.adopt_module_key_flags(json_flag)


def main(arguments: Sequence[str]) -> None:
    """Shows the runs in the given folders."""
    if not arguments:
        raise mhd.ConfigError("name the folder of a run: mhd show runs/mhd.")
    given = [folder_here(argument, "folder") for argument in arguments]
    folders = run_folders(given)
    for table in (folder / "table.md" for folder in given):
        if table.exists() and not json_flag.asked():
            launch.say(f"{table}:\n\n{table.read_text(encoding='utf-8')}")
    for number, folder in enumerate(folders):
        found = record(folder)
        if json_flag.asked():
            json_flag.say(found, alone=True)
        else:
            _print(found, after_another=number > 0)


def _print(found: Mapping[str, Any], after_another: bool) -> None:
    launch.say("\n".join([*([""] if after_another else []), *lines(found)]))
    if "beta_sh" in found:
        cells = [
            [head, *("–" if value is None else f"{value:.3f}" for value in values)]
            for head, *values in accuracy_lines(found)
        ]
        launch.console(alone=True).print(tables.rich(["head", "β_sh", "β_priv"], cells))


def lines(found: Mapping[str, Any]) -> list[str]:
    """Returns sentences that describe a run's `record`."""
    graph = found["settings"].get("topology", {}).get("name", "?")
    told = [
        f"{found['folder']}: {found['algorithm']} on {found['dataset']}, "
        f"{found['num_clients']} clients, {graph}, seed {found['seed']}",
        _status(found),
    ]
    if "communication" in found:
        sent = found["communication"]
        kinds = ", ".join(f"{kind} {decimal(count)}" for kind, count in sent["by_type"].items())
        told.append(f"sent: {decimal(sent['total_bytes'])}" + (f" ({kinds})" if kinds else ""))
    if "timing" in found:
        timing = found["timing"]
        told.append(
            f"time: {timing['steps_per_second']:,.1f} steps a second, compiled in "
            f"{timing['compile_seconds']:.1f} s"
        )
    versions = found["environment"].get("versions", {})
    told.append(
        f"made by: mhd_jax {versions.get('mhd_jax')}, jax {versions.get('jax')}, on "
        f"{found['environment'].get('device')}"
    )
    if found["command"]:
        told.append(f"command: {found['command']}")
    if (pathlib.Path(found["folder"]) / "report.html").exists():
        told.append(f"report: {found['folder']}/report.html")
    return told


def _status(found: Mapping[str, Any]) -> str:
    if found["status"] == "unfinished":
        asked = found["steps"] or "?"
        return f"not finished: evaluated at step {found['step']} of {asked}"
    stopped = f": {found['stopped_because']}" if found["status"] == "stopped" else ""
    return f"{found['status']} at step {found['steps']:,}{stopped}"


def start() -> None:
    """Starts the command on the arguments of this process."""
    launch.run(main, takes_arguments=True, computes=False)
