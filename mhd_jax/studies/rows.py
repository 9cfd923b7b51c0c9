"""The rows of a comparison, one for each algorithm, and the lines of its table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mhd_jax.runs.accuracies import accuracy_lines
from mhd_jax.studies import tables
from mhd_jax.studies.over_seeds import accuracies, as_cell

Row = dict[str, Any]
HEADINGS = ("algorithm", "head", "β_sh", "β_priv", "MB sent")


def summarise(name: str, summaries: Sequence[Mapping[str, Any]]) -> Row:
    """Returns one algorithm's row: means and standard deviations (n − 1) over seeds."""
    parts = {
        part: [summary[part] for summary in summaries if part in summary]
        for part in ("honest", "consensus")
    }

    def median(name: str) -> float:
        return float(np.median([summary["timing"][name] for summary in summaries]))

    return {
        "algorithm": name,
        "seeds": len(summaries),
        **accuracies(summaries),
        **{part: accuracies(of) for part, of in parts.items() if of},
        "total_bytes": float(np.mean([s["communication"]["total_bytes"] for s in summaries])),
        "seconds_per_step": median("seconds_per_step"),
        "compile_seconds": median("compile_seconds"),
    }


def stopped(runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[str]:
    """Returns a sentence for each run that was stopped before its last step.

    Args:
      runs: the summaries of the runs of each row, by the row's name.
    """
    return [
        f"{name}, seed {summary['seed']}, was stopped at step {summary['steps']}: "
        f"{summary['stopped_because']}."
        for name, summaries in runs.items()
        for summary in summaries
        if summary["status"] == "stopped"
    ]


def markdown(rows: Sequence[Mapping[str, Any]], notes: Sequence[str] = ()) -> str:
    """Returns the table as Markdown, with a line for each algorithm and head."""
    lines = [
        [row["algorithm"], head, *map(as_cell, values), f"{row['total_bytes'] / 1e6:,.1f}"]
        for row in rows
        for head, *values in accuracy_lines(row)
    ]
    return "\n".join([tables.markdown(HEADINGS, lines), caption(rows), *notes]) + "\n"


def caption(rows: Sequence[Mapping[str, Any]]) -> str:
    """Says what the numbers of the table are."""
    counts = [row["seeds"] for row in rows]
    seeds = "–".join(map(str, sorted({min(counts), max(counts)})))
    return f"Mean over clients, then mean ± standard deviation over {seeds} seed(s)."


def shown(rows: Sequence[Mapping[str, Any]]) -> tuple[Sequence[str], list[list[list[str]]]]:
    """Returns headings, and each row's lines; only its first one names it and has its costs."""
    found = []
    for row in rows:
        costs = [f"{row['total_bytes'] / 1e6:.1f}", f"{1000 * row['seconds_per_step']:.2f}"]
        lines = [["", head, *map(as_cell, values), "", ""] for head, *values in accuracy_lines(row)]
        lines[0] = [row["algorithm"], *lines[0][1:4], *costs]
        found.append(lines)
    return (*HEADINGS, "ms/step"), found
