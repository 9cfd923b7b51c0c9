"""`HostSettings`: what the host does for runs between their steps."""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from mhd_jax.core import multihost
from mhd_jax.core.errors import ConfigError
from mhd_jax.core.files import folder_here
from mhd_jax.core.validation import require_counts, require_validation
from mhd_jax.engine import memory
from mhd_jax.engine.metrics import Metric, OwnMetrics
from mhd_jax.engine.run import Run
from mhd_jax.engine.settings import Settings
from mhd_jax.runs.callbacks import Callback, ShowProgress
from mhd_jax.runs.callbacks.base import Callbacks
from mhd_jax.runs.callbacks.progress import is_interactive
from mhd_jax.runs.checkpoints import Keep
from mhd_jax.runs.folder import RunFolder

Watcher = Callback | Callable[[Mapping[str, Any]], None]


def listed(callbacks: Watcher | Sequence[Watcher]) -> list[Watcher]:
    """Returns the watchers that are given as one, or as several."""
    if callable(callbacks) or isinstance(callbacks, Callback):
        return [callbacks]
    if not isinstance(callbacks, Iterable):
        raise ConfigError(
            f"callbacks are functions or Callbacks, one or a list, not {callbacks!r}."
        )
    return [*callbacks]


@dataclasses.dataclass(frozen=True)
class HostSettings:
    """When runs evaluate, what they save and who watches them; the defaults stand here alone.

    Attributes are described with `mhd_jax.engine.simulate.simulate` and `simulate_many`.
    """

    eval_every: int = Settings.eval_every
    steps_per_dispatch: int | None = None
    workdirs: Sequence[str | pathlib.Path] | None = None
    checkpoint_every: int | None = None
    keep_checkpoints: int = 2
    keep_best: bool = False
    fall_back: bool = False
    callbacks: Watcher | Sequence[Watcher] = ()
    progress: bool | None = None
    keep_going: bool = False
    write_reports: bool = True
    metrics: Mapping[str, Metric] | Sequence[str] | None = None

    @functools.cached_property
    def own_metrics(self) -> OwnMetrics:
        """The metrics, checked."""
        return OwnMetrics.checked(self.metrics)

    def require_fit(self, runs: Sequence[Run]) -> None:
        """Raises `ConfigError` for what does not fit these runs, or this machine."""
        require_counts(keep_checkpoints=self.keep_checkpoints)
        if self.keep_best:
            require_validation("keep_best", all(len(run.clients.validation) for run in runs))
            if not self.workdirs:
                raise ConfigError("keep_best keeps a checkpoint in a folder; give a workdir.")
        for run in runs:
            memory.require_state_fits(run, saves=self.workdirs is not None)
            clients = run.clients
            self.own_metrics.try_out(run.num_active, clients.task, clients.num_outputs)

    def folders(self, runs: Sequence[Run]) -> list[RunFolder | None]:
        """Returns the folder of each run; checking it writes nothing."""
        if not self.workdirs:
            return [None for _ in runs]
        paths = [folder_here(path, "workdir") for path in self.workdirs]
        if len({path.resolve() for path in paths}) < len(paths):
            raise ConfigError("workdirs must differ from run to run.")
        keep = Keep(self.keep_checkpoints, self.keep_best)
        return [
            RunFolder(path, run.settings, run.programs, keep)
            for path, run in zip(paths, runs, strict=True)
        ]

    def watcher(self) -> Callback:
        """Returns all callbacks as one, which only the main process tells anything."""
        watchers = listed(self.callbacks)
        if self.progress or (self.progress is None and is_interactive()):
            watchers.append(ShowProgress())
        return Callbacks(watchers if multihost.is_main() else [])
