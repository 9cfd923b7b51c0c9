"""Folders that can be made or are refused, files that are there whole or not at all."""

from __future__ import annotations

import contextlib
import os
import pathlib
import re
from collections.abc import Iterator

from mhd_jax.core.errors import ConfigError


def expanded(path: str | os.PathLike[str]) -> pathlib.Path:
    """A path whose ~ or ~user is that home folder; as it is, where there is no such user."""
    return pathlib.Path(os.path.expanduser(path))


_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")  # also as pathlib leaves it, with one slash


def folder_here(path: object, name: str) -> pathlib.Path:
    """The path of a folder, or a file, of this machine, which need not be there yet; ~ is the home folder.

    Args:
      path: as a user gives it.
      name: of the setting, for refusals.

    Raises:
      ConfigError: a URL, or what can be no path.
    """
    text = str(path)
    if not isinstance(path, str | pathlib.PurePath) or not text or not text.isprintable():
        raise ConfigError(f"{name} must be a path of characters that can be printed, not {path!r}.")
    if _SCHEME.match(text):
        raise ConfigError(
            f"{name} is the path of a folder of this machine, not a URL like {text!r}: mount the "
            "storage, or copy what a local folder holds at the end."
        )
    found = expanded(text)
    if text.startswith("~") and found == pathlib.Path(text):
        raise ConfigError(
            f"{name} {text!r} is in the home folder of a user whom this machine does not know; write "
            "~/ for your own, ./~ for a folder whose name begins so."
        )
    try:
        found.lstat()
    except (FileNotFoundError, NotADirectoryError):
        pass
    except OSError as error:  # too long, or not to be looked at
        raise ConfigError(f"{name} {text!r} cannot be used: {error.strerror}.") from error
    return found


def make_folder(path: pathlib.Path, name: str) -> None:
    """Makes a folder where there is none; `ConfigError` where that cannot be, which says `name`."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"cannot make the {name} {path}: {error.strerror}.") from error


@contextlib.contextmanager
def written_whole(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """A file to write instead of `path`, which becomes `path` in one move once it is on the disk."""
    partial = partial_of(path)
    yield partial
    sync(partial)
    os.replace(partial, path)
    sync(path.parent)


def partial_of(path: pathlib.Path) -> pathlib.Path:
    """What `written_whole` writes first; a process that is killed may leave it behind."""
    return path.with_name(path.name + ".partial")


def sync(path: pathlib.Path) -> None:
    """Returns when a file, or a folder's list of files, is on the disk and survives a loss of power."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
