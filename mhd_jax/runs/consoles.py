"""The console that prints text for people."""

from __future__ import annotations

import io
import os
from typing import Any

import rich.console


class Console(rich.console.Console):
    """Rich's console, without emoji codes, and without an error if the reader closes the pipe.

    A program like `head` closes its pipe early; text like :cat: is printed as it is.
    """

    def __init__(self, **options: Any):
        super().__init__(emoji=False, **options)

    def on_broken_pipe(self) -> None:
        """Stops printing, as nobody reads the pipe any more."""
        self.quiet = True
        try:
            descriptor = self.file.fileno()
        except (io.UnsupportedOperation, ValueError):
            return
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, descriptor)  # also for text that is buffered
        os.close(nowhere)
