"""Folders that can be made or are refused, files that are there whole or not at all."""

from __future__ import annotations

import contextlib
import os
import pathlib
from collections.abc import Iterator

from mhd_jax.errors import ConfigError


def expanded(path: str | os.PathLike[str]) -> pathlib.Path:
    """A path whose ~ or ~user is that home folder; as it is, where there is no such user."""
    return pathlib.Path(os.path.expanduser(path))


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
