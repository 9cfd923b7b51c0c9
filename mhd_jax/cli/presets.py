"""The files of flags that come with the package: `--flagfile=preset:NAME` reads them."""

from __future__ import annotations

import dataclasses
import difflib
import pathlib
import re
from collections.abc import Sequence

from mhd_jax.core.commands import BINARIES
from mhd_jax.core.errors import ConfigError

_FOLDER = pathlib.Path(__file__).parent / "flagfiles"
_GIVEN = re.compile(r"(--?flagfile=)?preset:(.*)")


@dataclasses.dataclass(frozen=True)
class Preset:
    """A file of flags.

    Attributes:
      name: its name.
      path: the file.
      command: the command that it is for.
      about: the first sentence of its comment.
    """

    name: str
    path: pathlib.Path
    command: str
    about: str


def known() -> dict[str, Preset]:
    """Returns the presets by name."""
    return {path.stem: _read(path) for path in sorted(_FOLDER.glob("*.flags"))}


def _read(path: pathlib.Path) -> Preset:
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line[:1] == "#"]
    comment = " ".join(line.lstrip("# ") for line in lines)
    (binary,) = re.findall(r"python -m experiments\.(\w+) --flagfile", comment)
    (command,) = (name for name, own in BINARIES.items() if own == binary)
    return Preset(path.stem, path, command, re.split(r"(?<=\.)\s", comment)[0])


def resolved(arguments: Sequence[str]) -> list[str]:
    """Returns a command line in which presets are the paths of their files.

    Raises:
      ConfigError: there is no preset of a given name.
    """
    found = []
    for place, argument in enumerate(arguments):
        match = _GIVEN.fullmatch(argument)
        is_value = place > 0 and arguments[place - 1] in ("--flagfile", "-flagfile")
        if match and (match[1] or is_value):
            found.append(f"{match[1] or ''}{_path(match[2])}")
        else:
            found.append(argument)
    return found


def _path(name: str) -> pathlib.Path:
    presets = known()
    if name not in presets:
        close = difflib.get_close_matches(name, presets, n=1)
        meant = f"did you mean {close[0]}" if close else f"choose one of {', '.join(presets)}"
        raise ConfigError(f"there is no preset {name!r}; {meant}.")
    return presets[name].path
