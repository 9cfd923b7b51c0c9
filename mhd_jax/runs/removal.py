"""Removal of folders that hold runs, and nothing else."""

from __future__ import annotations

import contextlib
import pathlib
import shutil
from collections.abc import Iterator

from mhd_jax.core.errors import ConfigError
from mhd_jax.runs import locks
from mhd_jax.runs.records import read_json, write_json

_FILES = {
    *("config.json", "split.npz", "metrics.jsonl", "summary.json", "models.pickle", "report.html"),
    *("results.csv", "results.jsonl", "wandb.json", "lock"),
}
_IN_PAIRS = {".png": ".svg", ".svg": ".png", ".json": ".md", ".md": ".json"}  # figures and tables
_OF_A_RUN = ("checkpoints", "wandb")  # the folders in a run's folder
_BEGUN = "removal.partial"  # the files that a removal has begun to remove; it may be killed


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
    begun = folder / _BEGUN
    known = set(read_json(begun)["files"]) if begun.exists() else set()
    found = list(_folders(folder)) if folder.is_dir() else []
    runs = [path for path, is_run in found if is_run]
    if not runs and not known and not _is_left_behind(folder):
        raise ConfigError(
            f"{folder} exists and holds no runs; nothing was removed. Choose another."
        )
    files = (file for path, _ in found for file in sorted(path.iterdir()) if not _is_folder(file))
    foreign = (
        file
        for file in files
        if not _is_written(file) and str(file.relative_to(folder)) not in known
    )
    if (first := next(foreign, None)) is not None:
        raise ConfigError(
            f"{first} is of no run, so that nothing was removed; put it elsewhere, or choose another "
            "workdir."
        )
    with contextlib.ExitStack() as held:
        for run in runs:
            held.enter_context(locks.locked(run))
        inside = [path for path in folder.rglob("*") if not _is_folder(path)]
        write_json(begun, {"files": [str(path.relative_to(folder)) for path in inside]})
        for path in sorted(folder.iterdir(), key=lambda path: path == begun):
            if _is_folder(path):
                shutil.rmtree(path)
            else:
                path.unlink()


def _folders(folder: pathlib.Path) -> Iterator[tuple[pathlib.Path, bool]]:
    """Yields a folder and those in it, and whether each is a run's; not what is a run's own."""
    is_run = _is_run(folder)
    yield folder, is_run
    for path in sorted(folder.iterdir()):
        if _is_folder(path) and not (is_run and path.name in _OF_A_RUN):
            yield from _folders(path)


def _is_folder(path: pathlib.Path) -> bool:
    return path.is_dir() and not path.is_symlink()


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
    try:
        return config.is_file() and {"format", "settings"} <= read_json(config).keys()
    except ConfigError:  # it is damaged, and what a run writes next tells
        return (folder / "split.npz").is_file()


def _is_left_behind(folder: pathlib.Path) -> bool:
    """Tells whether a folder is what a process leaves that was killed at its start."""
    return folder.is_dir() and all(
        path.name == "lock" or path.suffix == ".partial" for path in folder.iterdir()
    )
