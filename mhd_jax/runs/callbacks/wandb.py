"""Logging to Weights & Biases."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mhd_jax.core.errors import ConfigError
from mhd_jax.core.extras import require
from mhd_jax.runs.callbacks.base import WatchedRun
from mhd_jax.runs.callbacks.tracker import Log, Tracker
from mhd_jax.runs.records import jsonable, read_json, write_json


class WandB(Tracker):
    """Logs to a project: numbers at each evaluation, and the settings as the run's config.

    With a workdir, wandb's files lie in it, and a resumed run continues the wandb run whose id is
    stored in `wandb.json`. WANDB_MODE=offline keeps all data on this machine, for `wandb sync`.
    """

    def __init__(self, project: str, **options: Any):
        """Checks that wandb is installed; starts nothing yet.

        Args:
          project: the project's name.
          **options: arguments of `wandb.init`, like `entity`, `tags` or `mode`.

        Raises:
          ConfigError: wandb is not installed, or the project has no name.
        """
        super().__init__()
        if not project:
            raise ConfigError("a wandb project needs a name.")
        require("wandb")
        self._options = {"project": project, **options}

    def open(self, run: WatchedRun, step: int) -> Log:
        """Starts a new wandb run at step 0; otherwise resumes the earlier one."""
        return _WandbRun(run, step, self._options)


class _WandbRun(Log):
    def __init__(self, run: WatchedRun, step: int, options: Mapping[str, Any]):
        wandb = require("wandb")
        algorithm = run.settings["algorithm"]
        self._file = None if run.folder is None else run.folder / "wandb.json"
        kept: dict[str, Any] = {"id": None, "step": 0}
        if step and self._file is not None and self._file.exists():
            kept = read_json(self._file)
        self.last = kept["step"]
        try:
            self._run = wandb.init(
                **{
                    "id": kept["id"],
                    "resume": "allow",
                    "reinit": "create_new",  # beside those of joint runs
                    "name": str(run.folder or f"{algorithm}, seed {run.settings['seed']}"),
                    "group": algorithm,
                    "dir": run.folder,
                    "config": jsonable(run.settings),
                    # wandb must not print into the progress bar.
                    "settings": wandb.Settings(console="off", quiet=True),
                    **options,
                }
            )
        except wandb.Error as error:
            raise RuntimeError(
                f"wandb cannot start: {error} WANDB_MODE=offline keeps all on this machine."
            ) from error
        self._keep(self.last)

    def write(self, step: int, numbers: Mapping[str, float]) -> None:
        self._run.log(dict(numbers), step=step, commit=True)
        self._keep(step)

    def close(self, status: str) -> None:
        self._run.finish(exit_code=1 if status == "failed" else 0)

    def _keep(self, step: int) -> None:
        """Writes the wandb id and the last logged step, which a resumed run reads."""
        if self._file is not None:
            write_json(self._file, {"id": self._run.id, "step": step})
