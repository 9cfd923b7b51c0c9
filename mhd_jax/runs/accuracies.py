"""The two accuracies of the paper as tables show them, and all that is measured beside them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

METRICS = {"beta_sh": "β_sh (uniform labels)", "beta_priv": "β_priv (own labels)"}


def accuracy_lines(record: Mapping[str, Any]) -> list[tuple[Any, ...]]:
    """Returns lines (head, β_sh, β_priv) for a table from a summary or a comparison's row.

    Lines for honest clients alone, in runs with adversaries, and for the consensus model follow.
    """
    lines = [(head, *(record[metric][head] for metric in METRICS)) for head in record["beta_sh"]]
    for head in record.get("honest", {}).get("beta_sh", ()):
        lines.append((f"{head}, honest", *(record["honest"][metric][head] for metric in METRICS)))
    if "consensus" in record:
        lines.append(("consensus", *(record["consensus"][metric]["main"] for metric in METRICS)))
    return lines


def by_metric(measured: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Returns what was measured by metric and head, own metrics too.

    Args:
      measured: means over clients, like a record or its entry `validation`, or a client's entry of a
        summary.
    """
    accuracies = {name: measured[name] for name in (*METRICS, "beta_own") if name in measured}
    return {**accuracies, **measured.get("metrics", {})}


def band(mean: Any, deviation: Any) -> tuple[np.ndarray, np.ndarray]:
    """Returns the ends of mean ± deviation, within what scores can be.

    Accuracies are in [0, 1]. Scores of a regression know no lower limit; they are told by means
    below 0.
    """
    lowest = -np.inf if np.any(np.less(mean, 0)) else 0
    return np.maximum(np.subtract(mean, deviation), lowest), np.minimum(np.add(mean, deviation), 1)


def chance(summary: Mapping[str, Any]) -> float:
    """Returns the accuracy of a guess: of C classes 1/C; 0 for a regression, which says so."""
    if "chance" in summary:
        return summary["chance"]
    return 1 / len(summary["per_client"][0]["per_class_accuracy"]["main"])
