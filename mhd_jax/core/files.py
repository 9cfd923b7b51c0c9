"""Paths, folders and atomically written files, with errors that name the setting."""

from __future__ import annotations

import contextlib
import os
import pathlib
import re
from collections.abc import Iterator

from mhd_jax.core.errors import ConfigError


def expanded(path: str | os.PathLike[str]) -> pathlib.Path:
    """Returns a path with ~ or ~user expanded; unchanged if there is no such user."""
    return pathlib.Path(os.path.expanduser(path))


_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")  # pathlib leaves one slash of a URL's two


def folder_here(path: object, name: str) -> pathlib.Path:
    """Returns the path of a local folder or file, which need not exist yet, with ~ expanded.

    Args:
      path: the path as a user gives it.
      name: the name of the setting, for error messages.

    Raises:
      ConfigError: the path is a URL, or cannot be a path.
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
    except OSError as error:  # the path is too long, or permission is denied
        raise ConfigError(f"{name} {text!r} cannot be used: {error.strerror}.") from error
    return found


def make_folder(path: pathlib.Path, name: str) -> None:
    """Makes a folder unless it exists; raises `ConfigError`, which says `name`, if it cannot."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"cannot make the {name} {path}: {error.strerror}.") from error


def file_here(path: object, name: str) -> pathlib.Path:
    """Returns the path of a local file that is to be written later, in a folder that it makes.

    Args:
      path, name: as for `folder_here`.

    Raises:
      ConfigError: as `folder_here`, or the file cannot be written.
    """
    found = folder_here(path, name)
    if found.is_dir():
        raise ConfigError(f"{name} {str(path)!r} is a folder; name a file.")
    make_folder(found.parent, f"folder of {name}")
    try:
        with partial_of(found).open("w"):
            pass
        partial_of(found).unlink()
    except OSError as error:
        raise ConfigError(f"{name} {str(path)!r} cannot be written: {error.strerror}.") from error
    return found


@contextlib.contextmanager
def refused_where_unwritable(path: str | os.PathLike[str]) -> Iterator[None]:
    """Raises `ConfigError` in place of an `OSError` of writing a file that a user has named."""
    try:
        yield
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be written ({error.strerror}); give a file in a folder that is there."
        ) from error


@contextlib.contextmanager
def written_whole(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yields a temporary path to write to, which atomically replaces `path` once it is on disk."""
    partial = partial_of(path)
    yield partial
    sync(partial)
    os.replace(partial, path)
    sync(path.parent)


def partial_of(path: pathlib.Path) -> pathlib.Path:
    """Returns the temporary path of `written_whole`, which a killed process may leave behind."""
    return path.with_name(path.name + ".partial")


def sync(path: pathlib.Path) -> None:
    """Flushes a file, or a folder's list of files, to disk, so that it survives a power loss."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
