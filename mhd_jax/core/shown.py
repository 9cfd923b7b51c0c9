"""Objects as text of a few lines, and as HTML for notebooks."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any

MOST_ROWS = 12  # of a table in a text, which has at most 20 lines


def shortened(values: Sequence[Any], most: int = MOST_ROWS) -> list[str]:
    """Returns the values as text, the middle left out where there are more than `most`."""
    texts = [str(value) for value in values]
    if len(texts) <= most:
        return texts
    return [*texts[: most - 2], "…", texts[-1]]


def counted(count: int, what: str) -> str:
    """Returns "1 thing", or "2 things"."""
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Returns the rows of a table as lines: the first column to the left, others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if place == 0 else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def html_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Returns an HTML table; its texts are escaped."""

    def line(cells: Sequence[str], tag: str) -> str:
        return f"<tr>{''.join(f'<{tag}>{html.escape(cell)}</{tag}>' for cell in cells)}</tr>"

    body = "".join(line(row, "td") for row in rows)
    return f"<table><thead>{line(headings, 'th')}</thead><tbody>{body}</tbody></table>"


def html_block(title: str, *parts: str) -> str:
    """Returns a title, which is escaped, above parts that are HTML."""
    return f"<div><p><b>{html.escape(title)}</b></p>{''.join(parts)}</div>"


def html_text(text: str) -> str:
    """Returns text with its line breaks as HTML."""
    return f"<pre>{html.escape(text)}</pre>"
