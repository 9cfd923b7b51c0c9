"""Where text goes that people read."""

from __future__ import annotations

import io
import os
from typing import Any

import rich.console


class Console(rich.console.Console):
    """Rich's console, but a reader who has gone, as `head` does, ends no program.

    And text like :cat: stays as it is.
    """

    def __init__(self, **options: Any):
        super().__init__(emoji=False, **options)

    def on_broken_pipe(self) -> None:
        """Prints nothing from now on."""
        self.quiet = True
        try:
            descriptor = self.file.fileno()
        except (io.UnsupportedOperation, ValueError):
            return
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, descriptor)  # of what waits to be written, too
        os.close(nowhere)
