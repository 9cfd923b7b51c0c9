"""What goes wrong in ways that a user can mend."""

from __future__ import annotations


class ConfigError(ValueError):
    """Settings that cannot work. The message names the setting and says what to do."""


class DivergedError(RuntimeError):
    """A loss is no longer finite."""


class InterruptedRun(KeyboardInterrupt):
    """The run was asked to stop, and has saved itself."""


class LostProcessError(RuntimeError):
    """Another process of a run on several has ended before its time."""


class StorageError(RuntimeError):
    """What should stay of a run cannot be written: the disk is full, or fails."""


def in_a_line(error: BaseException, most: int = 200) -> str:
    """An exception of someone else's: its class and the first line of what it says, cut where long."""
    lines = str(error).strip().splitlines()
    text = f"{type(error).__name__}: {lines[0].strip()}" if lines else type(error).__name__
    return text if len(text) <= most else f"{text[: most - 1]}…"
