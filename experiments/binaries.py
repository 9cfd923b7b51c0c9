"""The binaries of this folder that are commands of `mhd`."""

from __future__ import annotations

import sys

from mhd_jax.cli import main
from mhd_jax.core.commands import as_binary


def stand_in(name: str, command: str) -> None:
    """Makes a module of this folder a command of `mhd`.

    Args:
      name: the module's `__name__`: as a program it starts the command, imported it is the
        command's own module.
      command: the command's name.
    """
    if name == "__main__":
        main.begin(command, as_binary)
    else:
        sys.modules[name] = main.module_of(command)
