"""The command `mhd`: finds out which command is meant, and starts it."""

from __future__ import annotations

import difflib
import importlib
import sys
import types
from collections.abc import Callable, Collection
from typing import NoReturn

from mhd_jax.core.commands import COMMANDS
from mhd_jax.version import __version__

_HELP = ("-h", "-help", "--help", "--helpshort")


def main() -> None:
    """Starts the command that the first argument names, on those after it."""
    command, *rest = sys.argv[1:] or ["help"]
    if command == "help" and rest:
        command, rest = rest[0], [*rest[1:], "--help"]
    if command in ("help", *_HELP):
        print(overview())
    elif command in ("version", "-version", "--version"):
        print(f"mhd_jax {__version__}")
    elif command in COMMANDS:
        sys.argv = [f"mhd {command}", *rest]
        begin(command)
    elif "--help" in rest and (command in _algorithms() or _is_own(command)):
        _print_algorithm(command)
    elif "--help" in rest:
        _refuse("command or algorithm", command, [*COMMANDS, *_algorithms()])
    else:
        _refuse("command", command, COMMANDS)


def _refuse(what: str, name: str, known: Collection[str]) -> NoReturn:
    """Ends the process with one line about a name that is not known."""
    close = difflib.get_close_matches(name, known, n=1)
    meant = f"did you mean {close[0]}?" if close else f"choose one of {', '.join(known)}."
    print(f"error: there is no {what} {name!r}; {meant}", file=sys.stderr)
    sys.exit(1)


def _algorithms() -> Collection[str]:
    from mhd_jax.algorithms import ALGORITHMS  # which needs JAX

    return ALGORITHMS


def _is_own(name: str) -> bool:
    from mhd_jax.cli import own_code

    return own_code.is_own(name)


def _print_algorithm(name: str) -> None:
    from mhd_jax.cli import flag_help, launch
    from mhd_jax.core.errors import ConfigError

    try:
        launch.say(flag_help.of_algorithm(name))
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def overview() -> str:
    """Returns the help of `mhd` itself."""
    width = max(map(len, COMMANDS))
    return "\n".join(
        [
            "mhd_jax: decentralized learning by distillation.",
            "",
            "  mhd COMMAND --flag=value ...",
            "",
            *(f"  {name:{width}}  {sentence}" for name, sentence in COMMANDS.items()),
            "",
            "mhd help COMMAND lists a command's flags, and mhd help ALGORITHM tells an algorithm's",
            "equations and options; mhd --version tells the version.",
        ]
    )


def module_of(command: str) -> types.ModuleType:
    """Imports and returns a command's module."""
    return importlib.import_module(f"mhd_jax.cli.commands.{command}")


def begin(command: str, worded: Callable[[str], str] = str) -> None:
    """Starts a command as the program that this process is.

    Args:
      command: its name.
      worded: what becomes of its help's opening.
    """
    module = module_of(command)
    from absl import flags  # which only now has the command's flags

    sys.modules["__main__"].__doc__ = worded(module.__doc__ or "")
    for flag in flags.FLAGS.get_key_flags_for_module(module.__name__):
        flags.FLAGS.register_key_flag_for_module(sys.argv[0], flag)
    module.start()
