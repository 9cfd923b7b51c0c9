"""Where a command leaves its runs: --workdir, or else a folder of its own for each setting."""

from __future__ import annotations

import contextlib
import hashlib
import pathlib
import re
import sys
from collections.abc import Iterable, Iterator
from typing import Any

from absl import flags

from mhd_jax.cli import flag_help, own_code
from mhd_jax.core import multihost
from mhd_jax.core.errors import ConfigError
from mhd_jax.core.files import expanded, folder_here
from mhd_jax.runs import removal
from mhd_jax.studies.folder import folder_name

_DIGITS = 6  # of a folder's digest
_OF_CASES = ("grid", "vary", "space")  # which name a flag and its values


def chosen(*names: str) -> pathlib.Path:
    """Returns --workdir, or else runs/NAME-…-DIGEST.

    The digest is of the given flags that decide results, and of users' own code that they name: the
    same setting finds its folder again, however its flags are written.
    """
    if flags.FLAGS.workdir:
        return folder_here(flags.FLAGS.workdir, "--workdir")
    return pathlib.Path("runs") / folder_name("-".join([*names, _digest()]))


def _digest() -> str:
    given = {
        flag.name: flag.value
        for flag in flags.FLAGS.get_key_flags_for_module(sys.argv[0])
        if flag.value != flag.default and flag_help.decides_results(flag.name)
    }
    code: dict[str, str] = {}
    for text in (text for name, value in given.items() for text in _texts(name, value)):
        with contextlib.suppress(ConfigError):  # it is said where the code is used
            code |= own_code.digests(text)
    content = sorted(given.items()), sorted(code.items())
    return hashlib.sha256(repr(content).encode()).hexdigest()[:_DIGITS]


def _texts(name: str, value: Any) -> Iterator[str]:
    """Yields the parts of a flag's value that may name users' own code."""
    if isinstance(value, str):
        yield value
    for text in value if isinstance(value, list) else ():
        chosen = text.partition("=")[2] if name in _OF_CASES else text
        yield from (part.strip() for part in re.split("[,;]", chosen))


def overwrites() -> bool:
    """Tells whether --overwrite is given; a study may lack the flag, a signal come before it."""
    return "overwrite" in flags.FLAGS and bool(flags.FLAGS["overwrite"].value)


def make_room(workdir: pathlib.Path, origins: Iterable[str | None]) -> None:
    """Removes the runs that a folder holds, if --overwrite says so; call it when all is checked.

    Args:
      workdir: the folder.
      origins: the folders of runs that are to be continued; None for a start from nothing.

    Raises:
      mhd.ConfigError: the folder holds something else, too, or a run that is to be continued, or a
        process uses it.
    """
    if overwrites():
        for origin in filter(None, origins):
            if expanded(origin).resolve().is_relative_to(workdir.resolve()):
                raise ConfigError(
                    f"--overwrite would remove {origin}, from which continue_from starts; choose "
                    "another --workdir."
                )
        multihost.first_does(
            lambda: removal.discard(workdir),
            otherwise=f"the first process cannot empty {workdir}, and says why.",
        )
