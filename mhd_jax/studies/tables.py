"""Formatting of tables, given as headings and lines of cells: Markdown, LaTeX, the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

_LATEX = {
    "\\": r"\textbackslash ",
    **{c: "\\" + c for c in "&%$#_{}"},
    "~": r"\textasciitilde ",
    "^": r"\textasciicircum ",
}


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
