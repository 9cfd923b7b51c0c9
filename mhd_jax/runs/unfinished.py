"""The page of a run or a study that has not finished: it goes on, was interrupted, failed or diverged.

The page of a finished one takes its place; until then it is drawn by the reader's browser.
"""

from __future__ import annotations

import datetime
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from mhd_jax.runs import curves, page
from mhd_jax.runs import settings as dotted
from mhd_jax.runs.finished import UNFINISHED
from mhd_jax.runs.records import read_json

RELOADS_AFTER = 10  # seconds, while a run goes on


def write(
    folder: pathlib.Path,
    history: Sequence[Mapping[str, Any]],
    step: int,
    *,
    news: str = "",
    ended: str | None = None,
) -> None:
    """Writes the `report.html` of a run that has not finished.

    Args:
      folder: the run's folder.
      history: the evaluations so far.
      step: the run's present step.
      news: a sentence about its speed.
      ended: why the run takes no more steps, in a sentence; None while it goes on.
    """
    config = read_json(folder / "config.json")
    settings = config["settings"]
    of_clients = settings["clients"]
    name, steps = settings["algorithm"], settings["steps"]
    tables = []
    if history:
        last = history[-1]
        tables = [page.accuracies(f"Accuracy at step {last['step']:,}, mean over clients", last)]
    who = f"{name} on {of_clients['dataset']}, {of_clients['num_clients']} clients"
    _write(
        folder,
        "run",
        ended,
        title=f"Step {step:,} of {steps:,}: {who}, {settings['topology']['name']} graph",
        sentences=[sentence for sentence in (ended, news) if sentence],
        taken=step,
        whole=steps,
        tables=tables,
        curves=curves.of(history, of_clients.get("adversaries", ())) if history else None,
        settings=dotted.flat(settings),
        environments=[config.get("environment", {})],
    )


def write_study(
    folder: pathlib.Path,
    *,
    title: str,
    sentences: Sequence[str],
    share: float,
    table: page.Table,
    curves: Mapping[str, Any] | None,
    environments: Sequence[Mapping[str, Any]],
    ended: str | None = None,
) -> None:
    """Writes the `report.html` of a study that has not finished.

    Args:
      folder: the study's folder.
      title, sentences: how far it is.
      share: the part of its runs' steps that has been taken, in [0, 1].
      table: its rows, with what has finished.
      curves: its rows over steps, see `comparison_curves`; None before the first evaluation.
      environments: of its runs.
      ended: why it takes no more steps, in a sentence; None while it goes on.
    """
    _write(
        folder,
        "study",
        ended,
        title=title,
        sentences=[sentence for sentence in (ended, *sentences) if sentence],
        taken=round(share, 4),
        whole=1,
        tables=[table],
        curves=curves,
        settings={},
        environments=environments,
    )


def _write(folder: pathlib.Path, what: str, ended: str | None, **content: Any) -> None:
    page.write(
        folder,
        "unfinished.html",
        mark=UNFINISHED,
        what=what,
        reloads_after=None if ended else RELOADS_AFTER,
        written=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        **content,
    )
