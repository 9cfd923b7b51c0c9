"""`Result`: a run's metrics and final state, which can be pickled and can predict."""

from __future__ import annotations

import copy
import dataclasses
import pathlib
import pickle
from typing import Any

import numpy as np

from mhd_jax.core import modes
from mhd_jax.core.errors import ConfigError, in_a_line
from mhd_jax.core.types import PyTree, State
from mhd_jax.engine import frames, shown
from mhd_jax.engine.answers import Answers, portable
from mhd_jax.engine.client import Client, client_of


@dataclasses.dataclass(frozen=True)
class Result:
    """The outcome of a run: its summary, its history and its final state.

    A result can be pickled if its models can. A loaded result predicts as before, on one device;
    its states are host arrays, without optimizers and optimizer states.

    Attributes:
      summary: as in `summary.json`.
      history: one record for each evaluation, as in `metrics.jsonl`.
      state: the state at the end; None for a finished run whose last checkpoint is gone.
      best: with `keep_best`, the state with the highest β_sh of the last head on the validation
        set; None without.
      started_at: the step at which this process started or resumed the run: 0 for a new run,
        `steps` for one that had finished before.
      folder: the run folder; None for a run without a workdir.
    """

    summary: dict[str, Any]
    history: list[dict[str, Any]]
    state: State | None
    started_at: int = 0
    best: State | None = None
    _answers: Answers | None = None
    folder: pathlib.Path | None = None

    def predict(self, inputs: PyTree) -> np.ndarray:
        """Returns the clients' final predictions as logits [K, N, H, C] of all heads.

        Args:
          inputs: samples [N, ...] in the form in which the data set was given, or in which it
            stores samples (e.g. `data.test_inputs[:100]`); they are scaled, cropped and
            standardised like the test set.

        Raises:
          ConfigError: the run's checkpoints are gone, or samples of other shapes or types.
        """
        state, answers = self._clients()
        with modes.standard():
            return answers(state, inputs)[: self.summary["num_clients"]]

    def client(self, number: int) -> Client:
        """Returns one client at the end of the run: its model, its parameters, its predictions.

        Raises:
          ConfigError: there is no such client, or the run's checkpoints are gone.
        """
        state, answers = self._clients()
        with modes.standard():
            return client_of(state, answers, number, self.summary["num_clients"])

    def frame(self, of: str = "history") -> Any:
        """Returns a part of the result as a tidy table, see `mhd_jax.engine.frames`.

        Args:
          of: "history", "clients", "classes" or "edges".

        Returns:
          A pandas data frame; without pandas, a list of a dict for each row.

        Raises:
          ConfigError: there is no such table.
        """
        return frames.frame(self.summary, self.history, of)

    def __repr__(self) -> str:
        return shown.as_text(self)

    def _repr_html_(self) -> str:
        return shown.as_html(self)

    def _clients(self) -> tuple[State, Answers]:
        if self.state is None or self._answers is None:
            raise ConfigError("this run's clients are gone with its checkpoints; run it again.")
        return self.state, self._answers

    def __getstate__(self) -> dict[str, Any]:
        kept = dict(self.__dict__)
        for name in ("state", "best"):
            kept[name] = None if kept[name] is None else portable(kept[name])
        if self._answers is not None:
            kept["_answers"] = self._answers.on_one_device()
        models = [] if self.state is None else [group.model for group in self.state.groups]
        try:
            pickle.dumps((kept["_answers"], models))
        except Exception as error:  # pickle raises errors of many types
            raise ConfigError(
                f"this result cannot be pickled ({in_a_line(error)}); define its model's class and "
                "functions at the top of a module."
            ) from error
        return kept

    def __deepcopy__(self, memo: dict[int, Any]) -> Result:
        """Copies summary and history; the copy shares the states, which are immutable."""
        records = copy.deepcopy((self.summary, self.history), memo)
        return dataclasses.replace(self, summary=records[0], history=records[1])

    def plot(self):
        """Returns a matplotlib figure of the accuracies over steps, by head; notebooks show it."""
        from mhd_jax.runs import (  # importing matplotlib is slow, and only plots need it
            accuracies,
            drawing,
            figures,
        )

        with drawing.own_style():
            figure = figures.accuracy(self.history, accuracies.chance(self.summary))
            figure.draw_without_rendering()  # creates all texts while the style is active
        return drawing.shown_in_notebooks(figure)
