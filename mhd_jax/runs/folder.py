"""A run folder: the settings, metrics, checkpoints and summary of one run.

If a run has several processes, all must see the same folder; only the first writes its files, and
each saves its own part of a checkpoint.

config.json    the settings that determine the results, and the environment of the run
split.npz      the owner of each training sample; `make_clients` takes it as a partition
metrics.jsonl  one line for each evaluation
checkpoints/   everything that evolves, see `mhd_jax.runs.checkpoints`
summary.json   written once, when the run has finished
report.html    a page with figures, written after the summary, see `mhd_jax.runs.report`; of a run that
               goes on, the page of `mhd_jax.runs.callbacks.LiveReport`
models.pickle  architectures, written with the summary, for `mhd.load`
lock           exists while a process uses the folder, see `mhd_jax.runs.locks`
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mhd_jax.clients import Clients
from mhd_jax.core import multihost
from mhd_jax.core.commands import takes_flag
from mhd_jax.core.errors import ConfigError
from mhd_jax.core.files import make_folder, partial_of, sync
from mhd_jax.core.types import PyTree
from mhd_jax.core.warned import warn
from mhd_jax.runs import locks
from mhd_jax.runs.checkpoints import KEEP_LAST, Checkpoints, Keep
from mhd_jax.runs.environment import (
    changed_programs,
    decisive_environment,
    differing_entries,
    environment,
    what_traces,
)
from mhd_jax.runs.finished import FinishedRun, has_report, read_finished, read_history
from mhd_jax.runs.other_settings import differing_settings
from mhd_jax.runs.records import jsonable, read_json, write_json, write_text

FORMAT = 2  # the format of run folders; folders of other formats are refused


class RunFolder:
    """A run's folder on disk; opening it checks the folder's settings and writes nothing."""

    def __init__(
        self,
        path: str | os.PathLike,
        settings: Mapping[str, Any],
        programs: Mapping[str, str],
        keep: Keep = KEEP_LAST,
    ):
        """Checks that `path` is, or can become, the folder of a run with these settings.

        Args:
          path: the folder; `claim` makes it.
          settings: the settings that determine the run's results, JSON-like.
          programs: digests of the run's programs, see `mhd_jax.engine.programs`.
          keep: which checkpoints stay.

        Raises:
          ConfigError: the folder holds something else, or a run with other settings, of other code,
            or of another version.
        """
        self.path = pathlib.Path(path)
        self._settings = jsonable(settings)
        self._programs = dict(programs)
        self.checkpoints = Checkpoints(self.path / "checkpoints", keep)
        self._claim = contextlib.ExitStack()
        self._require_own()

    def _require_own(self) -> None:
        if self._config.exists():
            self._check()
        elif self.path.exists() and (not self.path.is_dir() or self._holds_something()):
            raise ConfigError(
                f"{self.path} exists and is not a run's folder; choose another workdir."
            )

    def _holds_something(self) -> bool:
        """Returns whether the folder holds more than remnants of a process killed at its start."""
        left = {partial_of(self._config), locks.file_of(self.path)}
        return any(path not in left for path in self.path.iterdir())

    @property
    def _as_start(self) -> str:
        start = str(self.path)
        return f"--continue_from={start}" if takes_flag("continue_from") else f"init={start!r}"

    @property
    def _remedy(self) -> str:
        if takes_flag("overwrite"):
            return "--overwrite removes it"
        return "remove the folder to begin anew"

    @property
    def _config(self) -> pathlib.Path:
        return self.path / "config.json"

    @property
    def _split(self) -> pathlib.Path:
        return self.path / "split.npz"

    @property
    def _metrics(self) -> pathlib.Path:
        return self.path / "metrics.jsonl"

    def claim(self) -> None:
        """Makes the folder if needed, and keeps other processes out of it until `close`.

        Raises:
          ConfigError: another process uses the folder, or the folder now holds another run.
        """

        def lock() -> None:
            make_folder(self.path, "workdir")
            self._claim.enter_context(locks.locked(self.path))

        multihost.first_does(
            lock, otherwise=f"the first process cannot use {self.path}, and says why."
        )
        self._require_own()

    def create(self, clients: Clients) -> None:
        """Writes `config.json` and `split.npz` unless they exist already."""
        multihost.barrier("run folder checked")  # before any process changes it
        if multihost.is_main():
            if not self._config.exists():
                content = {
                    "format": FORMAT,
                    "settings": self._settings,
                    "programs": self._programs,
                    "environment": environment(),
                }
                write_json(self._config, content)
            if not self._split.exists():
                clients.save_split(self._split)
        multihost.barrier("run folder created")

    def _check(self) -> None:
        config = read_json(self._config)
        stored = config.get("settings")
        if not isinstance(stored, dict):
            raise ConfigError(f"{self._config} is not a run's; choose another workdir.")
        if config.get("format") != FORMAT:
            raise ConfigError(
                f"{self.path} was made by another version of mhd_jax (its format is "
                f"{config.get('format')}, this version's {FORMAT}). Finish the run with that version, "
                "or choose another workdir."
            )
        differing = differing_settings(stored, self._settings)
        if differing:
            raise ConfigError(
                f"{self.path} holds a run with other settings: {'; '.join(differing)}. Choose another "
                f"workdir (there, {self._as_start} starts where this run is), or the same "
                f"settings to resume it{_made_by(config)}; {self._remedy}."
            )
        self._check_programs(config)

    def _check_programs(self, config: Mapping[str, Any]) -> None:
        """Raises `ConfigError` if the code has changed; warns if that cannot be decided."""
        differing = changed_programs(config.get("programs", {}), self._programs)
        if not differing:
            return
        what = " and ".join(differing)
        there, now = what_traces(config.get("environment", {})), what_traces(environment())
        elsewhere = differing_entries(there, now)
        if not elsewhere:
            raise ConfigError(
                f"{self.path} holds a run of other code: its {what} computed something else than now. "
                "Choose another workdir, or bring the code back, or a hyperparameter if the algorithm "
                f"records none; {self._remedy}."
            )
        if multihost.is_main():
            warn(
                f"whether the code of {self.path} is still the same cannot be told: its {what} "
                f"differ, but so does what traces them ({'; '.join(elsewhere)})."
            )

    @property
    def finished(self) -> bool:
        """Whether the run has finished."""
        return (self.path / "summary.json").exists()

    @property
    def has_report(self) -> bool:
        """Whether the finished run's report has been written."""
        return has_report(self.path)

    def save(
        self, step: int, carry: PyTree, seconds: float, evaluations: int, score: float | None = None
    ) -> None:
        """Saves everything that evolves, in the background.

        Args:
          step: a step without a checkpoint.
          carry: the run's `Carry`.
          seconds: seconds of training so far.
          evaluations: the number of lines in `metrics.jsonl`.
          score: the score by which the best checkpoint is chosen.

        Raises:
          StorageError: this checkpoint, or the one before, cannot be written.
        """
        about = {
            "evaluations": evaluations,
            "seconds": seconds,
            "score": score,
            "environment": decisive_environment(carry),
        }
        self.checkpoints.save(step, _fields(carry), about)

    def restore(self, like: PyTree, step: int, start: Callable[[], PyTree]) -> tuple[PyTree, float]:
        """Returns the carry of a checkpoint, and the seconds of training until then.

        Args:
          like: a carry, or its shapes, types and shardings.
          step: a step with a checkpoint.
          start: returns the carry of a new run.

        Raises:
          ConfigError: the checkpoint is damaged, or of another version.
        """
        found = self.checkpoints.restore(step, _fields(like), lambda: _fields(start()))
        return dataclasses.replace(like, **found), float(self.checkpoints.about(step)["seconds"])

    def warn_of_another_environment(self, step: int, like: PyTree) -> None:
        """Warns if the environment differs from the checkpoint's, so that results may differ."""
        then, now = self.checkpoints.about(step)["environment"], decisive_environment(like)
        differing = differing_entries(then, now)
        if differing and multihost.is_main():
            warn(
                f"{self.path} was saved elsewhere ({'; '.join(differing)}): the run goes on, but not "
                "bit for bit as without a stop; where only devices differ, by rounding."
            )

    def wait(self) -> None:
        """Waits until everything saved is on the disk, on all processes."""
        self.checkpoints.wait()
        multihost.barrier("checkpoints written")

    def close(self) -> None:
        """Ends the threads that save, and releases the folder for other processes."""
        with self._claim:
            self.checkpoints.close()

    def history(self) -> list[dict[str, Any]]:
        """Returns the evaluations so far, up to the first damaged line of `metrics.jsonl`."""
        return read_history(self._metrics)

    def rewind(self, step: int) -> list[dict[str, Any]]:
        """Removes evaluations and checkpoints after `step`; returns the evaluations up to `step`.

        Raises:
          ConfigError: `metrics.jsonl` has lost lines since the checkpoint of `step`.
        """
        records = [record for record in self.history() if record["step"] <= step]
        written = self.checkpoints.about(step)["evaluations"] if step else 0
        if len(records) != written:
            raise ConfigError(
                f"{self._metrics} holds {len(records)} evaluations up to step {step}, but {written} "
                "were written. Put it back from a copy, or choose another workdir."
            )
        text = "".join(json.dumps(record) + "\n" for record in records)
        multihost.barrier("metrics read")
        if not multihost.is_main():
            return records
        if self._metrics.exists() and text.encode() != self._metrics.read_bytes():
            write_text(self._metrics, text)
        self.checkpoints.keep_up_to(step)
        return records

    def append(self, record: Mapping[str, Any]) -> None:
        """Adds a line to `metrics.jsonl`, on the disk before the next checkpoint counts it."""
        if not multihost.is_main():
            return
        with open(self._metrics, "a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        sync(self._metrics)

    def summary(self) -> dict[str, Any]:
        """Reads the summary that `finish` wrote.

        Raises:
          ConfigError: the summary is damaged, or does not match `metrics.jsonl`.
        """
        return read_finished(self.path)[0]

    def finished_with(
        self, summary: Mapping[str, Any], history: Sequence[Mapping[str, Any]]
    ) -> FinishedRun:
        """Returns the finished run with the summary that `finish` wrote, and this history."""
        return FinishedRun(self.path, read_json(self._config), summary, history)

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Writes `summary.json`, which marks the run as finished."""
        self.wait()
        if multihost.is_main():
            write_json(self.path / "summary.json", summary)


def _fields(carry: Any) -> dict[str, Any]:
    """Returns the fields of a carry by name, without those that are None."""
    found = {field.name: getattr(carry, field.name) for field in dataclasses.fields(carry)}
    return {name: value for name, value in found.items() if value is not None}


def _made_by(config: Mapping[str, Any]) -> str:
    """Returns the command that made a stored run, in brackets, where there was one."""
    command = config.get("environment", {}).get("command")
    return f" ({command})" if command else ""
