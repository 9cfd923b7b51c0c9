"""Pages: their templates, and the tables that stand in them."""

from __future__ import annotations

import dataclasses
import os
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2

from mhd_jax.core.files import written_whole
from mhd_jax.runs import settings as dotted
from mhd_jax.runs import vega
from mhd_jax.runs.accuracies import accuracy_lines


@dataclasses.dataclass(frozen=True)
class Cell:
    """A table's cell: its text and, for numbers, the value by which to sort."""

    text: str
    value: float | None = None
    is_number: bool = False
    links: Sequence[tuple[str, str]] = ()


@dataclasses.dataclass(frozen=True)
class Table:
    """A table of a page; the first column names the row."""

    caption: str
    headings: Sequence[str]
    rows: Sequence[Sequence[Cell]]


def number(value: float | None, digits: int = 3) -> Cell:
    """Returns a cell with a number, or with a dash if it is unknown."""
    return Cell("–" if value is None else f"{value:,.{digits}f}", value, True)


def count(value: int) -> Cell:
    """Returns a cell with a whole number."""
    return Cell(f"{value:,}", value, True)


def of_text(text: str) -> Cell:
    """Returns a cell that sorts by the number with which its text begins, if there is one."""
    found = re.match(r"([+−-]?\d[\d,]*\.?\d*)(?![\w.])", text)
    if found is None:
        return Cell(text, is_number=text == "–")
    return Cell(text, float(found[1].replace(",", "").replace("−", "-")), True)


def spread(value: Mapping[str, float | None]) -> Cell:
    """Returns a cell with a mean ± its standard deviation."""
    mean, std = value["mean"], value["std"]
    if mean is None:
        return number(mean)
    return Cell(f"{mean:.3f}" + ("" if std is None else f" ± {std:.3f}"), mean, True)


def link(folder: pathlib.Path, run: pathlib.Path, text: str) -> tuple[str, str]:
    """Returns the path of a run's report relative to a page's folder, and the link's text."""
    path = pathlib.Path(os.path.relpath(run.resolve(), folder.resolve())) / "report.html"
    return path.as_posix(), text


def accuracies(caption: str, record: Mapping[str, Any]) -> Table:
    """Returns the table of an evaluation's, or a summary's, means over clients by head."""
    lines = [[Cell(head), *map(number, values)] for head, *values in accuracy_lines(record)]
    return Table(caption, ("head", "β_sh", "β_priv"), lines)


def as_bytes(size: float) -> str:
    """Formats a number of bytes with a unit, such as "1.5 MB"."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB"


def edges_in_words(topology: Mapping[str, Any]) -> str:
    """Counts a graph's edges: each edge once where all go both ways, else each direction."""
    links = topology.get("links")
    if links is not None and {(j, i) for i, j in links} == {(i, j) for i, j in links}:
        return f"{len(links) // 2:,} edges"
    return f"{topology['edges']:,} directed edges"


def write(folder: pathlib.Path, template: str, **content: Any) -> None:
    """Writes a folder's `report.html`, atomically.

    Args:
      folder: the folder of a run or a comparison.
      template: the name of a file in `templates`.
      **content: the template's variables.
    """
    text = _template(template).render(**content)
    with written_whole(folder / "report.html") as partial:
        partial.write_text(text, encoding="utf-8")


def _template(name: str) -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("mhd_jax.runs"),
        autoescape=jinja2.select_autoescape(["html"]),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.policies["json.dumps_kwargs"] = {}  # keeps the order of keys
    environment.globals["charts_library"] = vega.library
    environment.filters["bytes"] = as_bytes
    environment.filters["edges"] = edges_in_words
    environment.filters["reproduction"] = _reproduction
    return environment.get_template(name)


def _reproduction(environments: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Returns the runs' commands and environments, with each distinct value once."""
    found: dict[str, list[str]] = {}
    for environment in environments:
        for name, value in dotted.flat(environment).items():
            if value is not None:
                values = found.setdefault(name.removeprefix("versions."), [])
                if str(value) not in values:
                    values.append(str(value))
    return {"commands": found.pop("command", []), "environment": found}
