"""How a binary starts and ends."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

from absl import app, flags, logging

import mhd_jax as mhd


def run(main: Callable[[], None]) -> None:
    """Runs a binary: parses flags, and turns what can go wrong into one sentence and a status.

    Exit status: 1 for an unknown flag, 2 for settings that cannot work, 3 for a run that
    diverged, 130 for one that was interrupted.
    """

    def wrapped(argv: Sequence[str]) -> None:
        if not flags.FLAGS["verbosity"].present:
            logging.set_verbosity(logging.WARNING)  # orbax tells every detail of a save
        try:
            if len(argv) > 1:
                raise mhd.ConfigError(
                    f"unexpected argument {argv[1]!r}; flags are written --name=value."
                )
            main()
        except mhd.ConfigError as error:
            _exit(f"error: {error}", 2)
        except mhd.DivergedError as error:
            _exit(f"error: {error}", 3)
        except mhd.InterruptedRun as stop:
            _exit(str(stop), 130)
        except KeyboardInterrupt:
            _exit("interrupted", 130)

    app.run(wrapped)


def _exit(sentence: str, status: int) -> None:
    print(sentence, file=sys.stderr)
    sys.exit(status)
