"""Logging to TensorBoard's event files, by tensorboardX, which needs no TensorFlow."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import Any

from mhd_jax.core.errors import ConfigError
from mhd_jax.core.extras import require
from mhd_jax.runs.callbacks.base import WatchedRun
from mhd_jax.runs.callbacks.tracker import Log, Tracker
from mhd_jax.runs.records import jsonable
from mhd_jax.runs.settings import flat


class TensorBoard(Tracker):
    """Writes event files: scalars at each evaluation, and the settings once, as hyperparameters.

    The files go to the folder `tensorboard` in each run's workdir; `tensorboard --logdir=runs`
    shows all runs below the folder `runs`.
    """

    def __init__(self) -> None:
        """Checks that tensorboardX is installed; writes nothing yet.

        Raises:
          ConfigError: tensorboardX is not installed.
        """
        super().__init__()
        require("tensorboardX")

    def open(self, run: WatchedRun, step: int) -> Log:
        """Opens an event file, which gets all evaluations; TensorBoard hides those of older files."""
        if run.folder is None:
            raise ConfigError("TensorBoard's files go to a run's folder; give the run a workdir.")
        return _Events(run.folder / "tensorboard", run.settings)


class _Events(Log):
    def __init__(self, folder: pathlib.Path, settings: Mapping[str, Any]):
        self.last = 0  # older files may lack an evaluation, where a process died before it was told
        writer = require("tensorboardX").SummaryWriter
        self._writer = writer(str(folder), purge_step=1 if any(folder.glob("events*")) else 0)
        self._settings = settings

    def write(self, step: int, numbers: Mapping[str, float]) -> None:
        if self.last == 0:
            self._describe([n for n in numbers if n.startswith(("beta_sh/", "beta_priv/"))])
        for name, value in numbers.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self, status: str) -> None:
        if status == "finished":
            self._writer.file_writer.add_summary(_hparams({}, {})[2])
        self._writer.close()

    def _describe(self, metrics: list[str]) -> None:
        """Writes the settings for TensorBoard's page of hyperparameters, beside these metrics.

        They go to the run's own event file, as `add_hparams` would create a second run.
        """
        known = flat(jsonable(self._settings), ".")
        plain = {name: value for name, value in known.items() if not isinstance(value, list)}
        experiment, start, _ = _hparams(plain, dict.fromkeys(metrics, 0.0))
        for part in (experiment, start):
            self._writer.file_writer.add_summary(part)


def _hparams(settings: dict[str, Any], metrics: dict[str, float]) -> tuple[Any, Any, Any]:
    """Returns the summaries that describe a run's hyperparameters, its start, and its success."""
    return require("tensorboardX.summary").hparams(settings, metrics)
