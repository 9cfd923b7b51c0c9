"""Records of the benchmark's rows, one file for each version and machine, and what moved between two.

A record is {"machine", "versions", "git_commit", "rows"}; rows measured again replace themselves.
"""

from __future__ import annotations

import json
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax

import mhd_jax as mhd
from mhd_jax.cli import kept, launch
from mhd_jax.core.files import make_folder
from mhd_jax.runs import environment
from mhd_jax.runs.records import write_json
from mhd_jax.version import __version__

FOLDER = pathlib.Path(__file__).parent / "results" / "bench"
HEADINGS = ("row", "then", "now", "now / then", "moved")


def machine() -> str:
    """Returns the number and the kind of the processors or devices that JAX computes with."""
    device = jax.devices()[0]
    if device.platform != "cpu":
        return f"{jax.device_count()} × {device.device_kind}"
    return f"{launch.num_cores()} × {kept.processor()}"


def path_here() -> pathlib.Path:
    """Returns where this version's record of this machine is kept."""
    name = re.sub(r"[^a-z0-9]+", "_", f"{__version__}_{machine()}".lower()).strip("_")
    return FOLDER / f"{name}.json"


def keep(rows: Sequence[Mapping[str, Any]], path: pathlib.Path) -> None:
    """Writes a record of `rows` and of those rows of an earlier one that were not measured again."""
    earlier = {row["row"]: row for row in read(path)} if path.exists() else {}
    make_folder(path.parent, "folder of records")
    about = {
        "machine": machine(),
        "versions": environment.versions(),
        "git_commit": environment.git_commit(),
    }
    every = {**earlier, **{row["row"]: row for row in rows}}
    write_json(path, {**about, "rows": list(every.values())})


def read(path: pathlib.Path) -> list[dict[str, Any]]:
    """Returns the rows of a record, or of a file that the benchmark's --output wrote.

    Raises:
      mhd.ConfigError: the file is missing, damaged, or something else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        rows = content if isinstance(content, list) else content["rows"]
        if not all({"row", "value", "spread"} <= row.keys() for row in rows):
            raise KeyError("rows without name, value or spread")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise mhd.ConfigError(f"{path} holds no rows of a benchmark: {error}.") from error
    return rows


def compared(
    then: Sequence[Mapping[str, Any]], now: Sequence[Mapping[str, Any]]
) -> list[tuple[str, ...]]:
    """Returns lines of a table of the rows that both have, under `HEADINGS`.

    A row has moved if the quartiles of then and of now do not overlap; a value without quartiles
    cannot tell, unless it is the same.
    """
    before = {row["row"]: row for row in then}
    pairs = [(before[row["row"]], row) for row in now if row["row"] in before]
    return [
        (new["row"], _cell(old), _cell(new), _change(old, new), _moved(old, new))
        for old, new in pairs
    ]


def _cell(row: Mapping[str, Any]) -> str:
    if row["value"] is None:
        return "–"
    spread = "" if row["spread"] is None else " [{:.2f}, {:.2f}]".format(*row["spread"])
    return f"{row['value']:.2f}{spread}"


def _change(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    return "–" if not (old["value"] and new["value"]) else f"{new['value'] / old['value']:.2f}"


def _moved(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    if old["spread"] is None or new["spread"] is None:
        return "no" if old["value"] == new["value"] else "–"
    apart = old["spread"][1] < new["spread"][0] or new["spread"][1] < old["spread"][0]
    return "yes" if apart else "no"
