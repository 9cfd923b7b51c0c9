"""Removal of folders that hold runs, and nothing else."""

from __future__ import annotations

import contextlib
import pathlib
import shutil
from collections.abc import Iterator

from mhd_jax.core.errors import ConfigError
from mhd_jax.runs import locks
from mhd_jax.runs.records import read_json

_FILES = {
    *("config.json", "split.npz", "metrics.jsonl", "summary.json", "models.pickle", "report.html"),
    *("results.csv", "results.jsonl", "wandb.json", "lock"),
}
_IN_PAIRS = {".png": ".svg", ".svg": ".png", ".json": ".md", ".md": ".json"}  # figures and tables
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
    found = [path for path in (folder, *folder.rglob("*")) if path.is_dir()]
    runs = [path for path in found if _is_run(path)]
    if not runs and not _is_left_behind(folder):
        raise ConfigError(
            f"{folder} exists and holds no runs; nothing was removed. Choose another."
        )
    if (foreign := next(_foreign(folder), None)) is not None:
        raise ConfigError(
            f"{foreign} is of no run, so that nothing was removed; put it elsewhere, or choose another "
            "workdir."
        )
    with contextlib.ExitStack() as held:
        for run in runs:
            held.enter_context(locks.locked(run))
        for path in folder.iterdir():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()


def _foreign(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yields what no run leaves in a folder, and in those in it."""
    is_run = _is_run(folder)
    for path in sorted(folder.iterdir()):
        if path.is_dir() and not path.is_symlink():
            if not (is_run and path.name in _OF_A_RUN):
                yield from _foreign(path)
        elif not _is_written(path):
            yield path


def _is_written(path: pathlib.Path) -> bool:
    """Tells whether runs and studies write a file of this name."""
    other = _IN_PAIRS.get(path.suffix)
    return not path.is_symlink() and (
        path.name in _FILES
        or path.suffix == ".partial"
        or ".tfevents." in path.name
        or (other is not None and path.with_suffix(other).exists())
    )


def _is_run(folder: pathlib.Path) -> bool:
    config = folder / "config.json"
    return config.is_file() and {"format", "settings"} <= read_json(config).keys()


def _is_left_behind(folder: pathlib.Path) -> bool:
    """Tells whether a folder is what a process leaves that was killed at its start."""
    return folder.is_dir() and all(
        path.name == "lock" or path.suffix == ".partial" for path in folder.iterdir()
    )
