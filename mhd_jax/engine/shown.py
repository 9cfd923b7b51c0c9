"""A `Result` as text of a few lines, and as HTML for notebooks."""

from __future__ import annotations

from typing import Any

from rich.filesize import decimal

from mhd_jax.core.shown import MOST_ROWS, aligned, counted, html_block, html_table, html_text

_HEADINGS = ("head", "β_sh", "β_priv")


def as_text(result: Any) -> str:
    """Returns what ran, accuracies by head, what was sent, and where the run is."""
    return "\n".join([_title(result), *aligned([_HEADINGS, *_rows(result)]), *_end(result)])


def as_html(result: Any) -> str:
    """Returns the same as HTML."""
    table = html_table(_HEADINGS, _rows(result))
    return html_block(_title(result), table, html_text("\n".join(_end(result))))


def _title(result: Any) -> str:
    found = result.summary
    because = f" ({found['stopped_because']})" if "stopped_because" in found else ""
    return (
        f"Result of {found['algorithm']} on {found['dataset']}: {found['num_clients']} clients, "
        f"{found['topology']['name']}, {found['steps']:,} steps, seed {found['seed']}, "
        f"{found['status']}{because}"
    )


def _rows(result: Any) -> list[tuple[str, ...]]:
    found = result.summary
    rows: list[tuple[str, ...]] = [
        (head, *(_number(found[metric][head]) for metric in ("beta_sh", "beta_priv")))
        for head in found["beta_sh"]
    ]
    if len(rows) > MOST_ROWS:
        rows = [*rows[: MOST_ROWS - 2], ("…", "", ""), rows[-1]]
    consensus = found.get("consensus")
    if consensus is not None:
        values = (next(iter(consensus[metric].values())) for metric in ("beta_sh", "beta_priv"))
        rows.append(("consensus", *map(_number, values)))
    return rows


def _end(result: Any) -> list[str]:
    found = result.summary
    sent = decimal(int(found["communication"]["total_bytes"]))
    each = 1000 * found["timing"]["seconds_per_step"]
    lines = [f"sent: {sent}; {each:.2f} ms a step; {counted(len(result.history), 'evaluation')}"]
    if result.folder is not None:
        lines.append(f"folder: {result.folder}")
    return lines


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
