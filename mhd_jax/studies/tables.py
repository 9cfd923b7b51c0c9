"""Formatting of tables, given as headings and lines of cells: Markdown, LaTeX, the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

_LATEX = {
    "\\": r"\textbackslash ",
    **{c: "\\" + c for c in "&%$#_{}"},
    "~": r"\textasciitilde ",
    "^": r"\textasciicircum ",
}


def markdown(headings: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Returns the table as Markdown; a | in a cell is none between cells."""
    escaped = ([cell.replace("|", r"\|") for cell in row] for row in (headings, *lines))
    heading, *below = (f"| {' | '.join(row)} |\n" for row in escaped)
    return "".join([heading, f"|{'---|' * len(headings)}\n", *below])


def rich(
    headings: Sequence[str], lines: Sequence[Sequence[str]], title: str | None = None
) -> Table:
    """Returns the table for the terminal, with all texts as they are: [b] is no markup."""
    table = Table(title=None if title is None else Text(title, "table.title"))
    for heading in headings:
        table.add_column(Text(heading))
    add_lines(table, lines)
    return table


def add_lines(table: Table, lines: Sequence[Sequence[str]]) -> None:
    """Adds lines to a table for the terminal."""
    for line in lines:
        table.add_row(*map(Text, line))


def latex(headings: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Returns the table as LaTeX for the package booktabs; cells are LaTeX already."""
    first, *below = (f"  {' & '.join(row)} \\\\\n" for row in (headings, *lines))
    columns = "l" + "c" * (len(headings) - 1)
    return (
        f"\\begin{{tabular}}{{{columns}}}\n  \\toprule\n{first}  \\midrule\n{''.join(below)}"
        "  \\bottomrule\n\\end{tabular}\n"
    )


def as_latex(text: str) -> str:
    """Escapes a text's characters that mean something else in LaTeX."""
    return "".join(_LATEX.get(character, character) for character in text)
