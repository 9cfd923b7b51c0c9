"""The commands of `mhd`, and what a user types for each: in a clone they have binaries, too."""

from __future__ import annotations

import pathlib
import re
import sys

COMMANDS = {
    "train": "trains clients that learn from each other: one run",
    "compare": "runs several algorithms on the same clients and seeds, for one table",
    "sweep": "runs a grid over any settings and seeds, or searches among them",
    "topology": "measures what clients know of classes that are several hops away",
    "report": "compares finished runs in one report, or writes one run's report again",
    "show": "shows what run folders hold, here in the terminal",
    "data": "shows which client would get which data, before any training",
    "prepare": "downloads and prepares a data set, once",
    "presets": "lists the files of flags that come with this package",
    "plan": "tells whether a run would fit on a machine that is not here, and its step's time",
    "demo": "isolated training, naive distillation and MHD on real digits, in one to two minutes",
    "doctor": "looks at versions, devices, folders and optional packages",
}
# Those of `python -m experiments.NAME`, which only a clone has.
BINARIES = {
    "train": "train",
    "compare": "compare",
    "sweep": "sweep",
    "topology": "topology",
    "report": "report",
    "data": "inspect_data",
    "prepare": "prepare_data",
    "plan": "plan",
    "demo": "quickstart",
}
_CLONE = pathlib.Path(__file__).parents[2] / "experiments" / "RESULTS.md"


def by_mhd() -> bool:
    """Tells whether this process is a command of `mhd`, which then is its name."""
    return sys.argv[0].startswith("mhd ")


def takes_flag(name: str) -> bool:
    """Tells whether this process is a command that has a flag; a program of a user's has none."""
    from absl import flags  # late, as the overview of `mhd` needs nothing but Python

    return flags.FLAGS.is_parsed() and name in flags.FLAGS


def named(command: str) -> str:
    """Returns a command's name in a sentence: `mhd NAME`, or that of the clone's binary."""
    of_mhd = by_mhd() or not _CLONE.exists()
    return f"mhd {command}" if of_mhd else f"experiments.{BINARIES[command]}"


def typed(command: str) -> str:
    """Returns what a user types for a command."""
    name = named(command)
    return name if name.startswith("mhd ") else f"python -m {name}"


def as_binary(text: str) -> str:
    """Returns a text of `mhd` for the clone, where it names the commands that are binaries."""
    of_a_line = re.sub(
        rf"^  mhd ({'|'.join(BINARIES)})\b",
        lambda found: f"  python -m experiments.{BINARIES[found[1]]}",
        text,
        flags=re.MULTILINE,
    )
    return re.sub(
        rf"\bmhd ({'|'.join(BINARIES)})\b",
        lambda found: f"experiments.{BINARIES[found[1]]}",
        of_a_line,
    )
