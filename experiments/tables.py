"""Formatting of tables, given as headings and lines of cells: Markdown, and for the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table


def markdown(headings: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Returns the table as Markdown."""
    heading, *below = (f"| {' | '.join(row)} |\n" for row in (headings, *lines))
    return "".join([heading, f"|{'---|' * len(headings)}\n", *below])


def rich(
    headings: Sequence[str], lines: Sequence[Sequence[str]], title: str | None = None
) -> Table:
    """Returns the table for the terminal."""
    table = Table(*headings, title=title)
    for line in lines:
        table.add_row(*line)
    return table
