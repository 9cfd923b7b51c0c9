"""Stopping a run that no longer gets better on its validation set."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from mhd_jax.core.errors import ConfigError
from mhd_jax.core.validation import is_number, require_counts, require_validation
from mhd_jax.runs.accuracies import by_metric
from mhd_jax.runs.callbacks.base import Callback, WatchedRun


class EarlyStopping(Callback):
    """Stops a run after `patience` evaluations without a better value than the best before.

    The decision is a function of the evaluations so far, so that a run which was interrupted and
    resumed stops at the same step. The stopped run's `best_step` is that of the best value; its
    parameters are those of the last step, and with `keep_best` the best ones are kept too.
    """

    def __init__(self, quantity: str, patience: int = 5, min_delta: float = 0.0):
        """Stores what is watched.

        Args:
          quantity: of the validation set, "beta_sh/main", "beta_priv/aux_1" or an own metric
            ("macro_f1/main"), which is to rise; or of training, "train/loss", which is to fall.
          patience: after how many evaluations without a better value the run stops.
          min_delta: by how much a value must be better than the best before.

        Raises:
          ConfigError: a value that cannot work.
        """
        self.quantity = quantity
        self.patience = patience
        self.min_delta = min_delta
        require_counts(patience=patience)
        if not (isinstance(quantity, str) and quantity.count("/") == 1):
            raise ConfigError(
                f"EarlyStopping watches a quantity like 'beta_sh/main', not {quantity!r}."
            )
        if not (is_number(min_delta) and 0 <= min_delta < math.inf):
            raise ConfigError(f"min_delta must be at least 0, not {min_delta!r}.")

    def check(self, runs: Sequence[WatchedRun]) -> None:
        """Raises `ConfigError` if a run has no validation set to look at, or no such quantity."""
        if not self._of_training:
            require_validation("EarlyStopping", all(run.scores for run in runs))
        for run in runs:
            self._require_among(run.terms if self._of_training else run.scores)

    def on_start(self, runs: Sequence[WatchedRun], step: int) -> None:
        """Stops the runs that had to stop at `step`, where they were cut."""
        for run in runs:
            self._look(run)

    def on_evaluation(self, record: Mapping[str, Any], view: WatchedRun) -> None:
        """Stops the run if it has not become better for long enough."""
        self._look(view)

    @property
    def _of_training(self) -> bool:
        return self.quantity.startswith("train/")

    def _look(self, run: WatchedRun) -> None:
        values = [self._value(record) for record in run.history]
        if not values:
            return
        best, since = 0, 0
        for place, value in enumerate(values[1:], 1):
            better = value > values[best] + self.min_delta
            best, since = (place, 0) if better else (best, since + 1)
            if since >= self.patience:
                step = run.history[best]["step"]
                reached = -values[best] if self._of_training else values[best]
                run.stop(
                    f"{self.quantity} has not become better for {self.patience} evaluations, "
                    f"{reached:.4g} at step {step:,} being its best",
                    best_step=step,
                )
                return

    def _value(self, record: Mapping[str, Any]) -> float:
        """Returns the watched value, with the sign by which larger is better; −∞ if unknown."""
        values = {f"train/{part}": value for part, value in record["train"].items()}
        if not self._of_training:
            for name, by_head in by_metric(record["validation"]).items():
                values |= {f"{name}/{head}": value for head, value in by_head.items()}
        self._require_among(values)
        found = values[self.quantity]
        if found is None:
            return -math.inf
        return -found if self._of_training else found

    def _require_among(self, known: Collection[str]) -> None:
        if self.quantity not in known:
            raise ConfigError(
                f"there is no {self.quantity} to watch; choose one of {', '.join(known)}."
            )
