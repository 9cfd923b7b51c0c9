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
    """A file to write instead of `path`, which becomes `path` in one move once it is written."""
    partial = path.with_name(path.name + ".partial")
    yield partial
    os.replace(partial, path)
