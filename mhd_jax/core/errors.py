"""Exceptions for failures that a user can fix, such as impossible settings or a full disk."""

from __future__ import annotations


class ConfigError(ValueError):
    """Settings are invalid; the message names the setting and says what to do."""

    def add_note(self, note: str) -> None:
        """Adds a note, but not JAX's on frames that it leaves out: the sentence is to stand last."""
        if "JAX has removed its internal frames" not in note:
            super().add_note(note)


class DivergedError(RuntimeError):
    """Training diverged: a loss, or a client's parameters, are no longer finite."""


class InterruptedRun(KeyboardInterrupt):
    """The run was asked to stop; it has saved its state and can be resumed."""


class LostProcessError(RuntimeError):
    """Another process of a multi-process run ended before the run was complete."""


class StorageError(RuntimeError):
    """A file of the run cannot be written: the disk is full or fails."""


def in_a_line(error: BaseException, most: int = 200) -> str:
    """Returns an exception's class and the first line of its message, at most `most` characters."""
    lines = str(error).strip().splitlines()
    text = f"{type(error).__name__}: {lines[0].strip()}" if lines else type(error).__name__
    return text if len(text) <= most else f"{text[: most - 1]}…"
