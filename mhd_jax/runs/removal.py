"""Removal of folders that hold runs, and nothing else."""

from __future__ import annotations

import contextlib
import pathlib
import shutil
from collections.abc import Iterator

from mhd_jax.core.errors import ConfigError
from mhd_jax.runs import locks
from mhd_jax.runs.records import read_json

_FILES = (".json", ".jsonl", ".npz", ".html", ".pickle", ".md", ".csv", ".png", ".svg", ".partial")
_OF_A_RUN = ("checkpoints", "wandb")  # the folders in a run's folder


def discard(folder: pathlib.Path) -> None:
    """Removes what a folder of one or several runs holds; the folder itself stays.

    Args:
      folder: the folder, which need not exist.

    Raises:
      ConfigError: it holds no runs, or also what no run leaves, or a process uses one of its runs; then
        nothing is removed.
    """
    if not folder.exists():
        return
    runs = list(_runs(folder)) if folder.is_dir() else []
    if not runs and not _is_left_behind(folder):
        raise ConfigError(
            f"{folder} exists and holds no runs; nothing was removed. Choose another."
        )
    with contextlib.ExitStack() as held:
        for run in runs:
            held.enter_context(locks.locked(run))
        for path in folder.iterdir():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()


def _runs(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yields the folders of runs in a folder; raises `ConfigError` at what no run leaves."""
    is_run = _is_run(folder)
    if is_run:
        yield folder
    for path in sorted(folder.iterdir()):
        if path.is_dir() and not path.is_symlink():
            if not (is_run and path.name in _OF_A_RUN):
                yield from _runs(path)
        elif path.suffix not in _FILES and path.name != "lock" and ".tfevents." not in path.name:
            raise ConfigError(
                f"{path} is of no run, so that nothing was removed; put it elsewhere, or choose another "
                "workdir."
            )


def _is_run(folder: pathlib.Path) -> bool:
    config = folder / "config.json"
    return config.is_file() and {"format", "settings"} <= read_json(config).keys()


def _is_left_behind(folder: pathlib.Path) -> bool:
    """Tells whether a folder is what a process leaves that was killed at its start."""
    return folder.is_dir() and all(
        path.name == "lock" or path.suffix == ".partial" for path in folder.iterdir()
    )
