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


def first_line(error: BaseException, most: int = 200) -> str:
    """What an exception of others says, cut to a part of one line."""
    line = next(iter(str(error).strip().splitlines()), "no reason given").strip()
    return line if len(line) <= most else f"{line[: most - 1]}…"
