"""A result's numbers as tidy tables: one number a row, and what it is about in the other columns."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from mhd_jax.core.errors import ConfigError
from mhd_jax.runs.accuracies import by_metric

Row = dict[str, Any]


def frame(summary: Mapping[str, Any], history: Sequence[Mapping[str, Any]], of: str) -> Any:
    """Returns a table of a run.

    - "history": a row for each evaluation, split, metric and head, as means over clients: `step`,
      `seconds`, `bytes`, `split` ("test", "validation" or "train"), `metric`, `head`, `value`.
    - "clients": a row for each client, metric and head at the end: `client`, `model`, `metric`,
      `head`, `value`.
    - "classes": a row for each client, head and class at the end: `client`, `model`, `head`, `class`,
      `name`, `private_samples`, `accuracy`.
    - "edges": a row for each kind of message and each pair of clients between which there were some:
      `receiver`, `sender`, `kind`, `messages`, and where they are recorded `agreement` and the share
      `followed` by head. Between a client and a server, `sender` is None.

    Args:
      summary, history: of a `Result`.
      of: the table's name.

    Returns:
      A pandas data frame if pandas is installed, else a list of rows.

    Raises:
      ConfigError: there is no table of this name.
    """
    if of not in _TABLES:
        raise ConfigError(f"there is no frame {of!r}; choose one of {', '.join(_TABLES)}.")
    return as_frame(list(_TABLES[of](summary, history)))


def as_frame(rows: list[Row]) -> Any:
    """Returns rows as a pandas data frame if pandas is installed, else as they are."""
    try:
        pandas = importlib.import_module("pandas")
    except ImportError:
        return rows
    return pandas.DataFrame(rows)


def _history(summary: Mapping[str, Any], history: Sequence[Mapping[str, Any]]) -> Iterator[Row]:
    for record in history:
        when = {name: record[name] for name in ("step", "seconds", "bytes")}
        for split, found in (("test", record), ("validation", record.get("validation", {}))):
            for metric, heads in by_metric(found).items():
                for head, value in heads.items():
                    yield {**when, "split": split, "metric": metric, "head": head, "value": value}
        for name, value in record["train"].items():
            yield {**when, "split": "train", "metric": name, "head": None, "value": value}


def _clients(summary: Mapping[str, Any], history: Sequence[Mapping[str, Any]]) -> Iterator[Row]:
    for each in summary["per_client"]:
        who = {"client": each["client"], "model": each["model"]}
        for metric, heads in by_metric(each).items():
            for head, value in heads.items():
                yield {**who, "metric": metric, "head": head, "value": value}


def _classes(summary: Mapping[str, Any], history: Sequence[Mapping[str, Any]]) -> Iterator[Row]:
    names, counts = summary["data"]["class_names"], summary["data"]["private_samples"]
    for each in summary["per_client"]:
        who = {"client": each["client"], "model": each["model"]}
        samples = counts[each["client"]]
        for head, accuracies in each["per_class_accuracy"].items():
            for number, accuracy in enumerate(accuracies):
                yield {
                    **who,
                    "head": head,
                    "class": number,
                    "name": names[number],
                    "private_samples": samples[number],
                    "accuracy": accuracy,
                }


def _edges(summary: Mapping[str, Any], history: Sequence[Mapping[str, Any]]) -> Iterator[Row]:
    recorded = summary.get("diagnostics", {})
    for kind, counts in summary["communication"]["by_edge"].items():
        for receiver, row in enumerate(counts):
            of_server = not isinstance(row, list)
            for sender, messages in enumerate([row] if of_server else row):
                if not messages:
                    continue
                found: Row = {"receiver": receiver, "sender": None if of_server else sender}
                found |= {"kind": kind, "messages": messages}
                if recorded and not of_server:
                    found["agreement"] = recorded["agreement"][receiver][sender]
                    for rank, shares in enumerate(recorded["followed"], 1):
                        found[f"followed_{rank}"] = shares[receiver][sender]
                yield found


_TABLES: dict[str, Callable[..., Iterator[Row]]] = {
    "history": _history,
    "clients": _clients,
    "classes": _classes,
    "edges": _edges,
}
