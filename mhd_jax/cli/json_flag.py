"""The flag of commands that print for machines, too."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from absl import flags

from mhd_jax.cli import launch
from mhd_jax.runs.records import jsonable

_JSON = flags.DEFINE_bool(
    "json", False, "Whether to print one JSON object instead, see docs/command_line.md."
)


def asked() -> bool:
    """Tells whether a JSON object is to be printed, and nothing else."""
    return bool(_JSON.value)


def say(found: Mapping[str, Any], *, alone: bool = False) -> None:
    """Prints a JSON object in one line, see `launch.say`."""
    launch.say(json.dumps(jsonable(found), ensure_ascii=False), alone=alone)
