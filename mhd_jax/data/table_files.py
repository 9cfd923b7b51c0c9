"""Reading of tables from files: comma- or tab-separated text, and Parquet."""

from __future__ import annotations

import codecs
import csv
import dataclasses
import io
import math
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mhd_jax.core.errors import ConfigError
from mhd_jax.core.files import expanded

_DELIMITERS = {".csv": ",", ".tsv": "\t"}
SUFFIXES = (*_DELIMITERS, ".parquet")
SPLIT = "split"  # the column that may name each row's split
# Texts that stand for a missing number, in lower case; in columns of texts only empty cells do.
_MISSING = ("na", "n/a", "#n/a", "<na>", "nan", "null", "none", "?")
_LONGEST_FIELD = 2**31 - 1  # characters; Python's own limit is 2¹⁷
_TRUTHS = {"true": 1.0, "false": 0.0}


@dataclasses.dataclass(frozen=True, eq=False)
class StoredImages:
    """A column of images: the content of each one's file, or its path; None where it is missing."""

    files: tuple[bytes | str | None, ...]

    def __getitem__(self, rows: np.ndarray) -> StoredImages:
        return StoredImages(tuple(self.files[row] for row in rows))


@dataclasses.dataclass(frozen=True, eq=False)
class Table:
    """The columns of a file.

    Attributes:
      name: the file, for errors.
      columns: by name: numbers, float64 [N], NaN where one is missing; texts, objects [N], None
        where one is missing; numbers [N, ...] of lists of equal lengths; other objects [N]; or
        images.
      rows: where each row stands in the file, int [N].
      unit: what `rows` counts: "line" or "row".
      class_names: names of the numbers 0, 1, … in a column, where the file gives some.
      texts: the cells, objects [N], of columns of whole numbers some of which are written unlike
        numbers, as in 007 or 1e5, or beyond float64; they may be codes, several of one number.
      index: the columns that number or name rows, and are features only if the user asks for them.
    """

    name: str
    columns: Mapping[str, np.ndarray | StoredImages]
    rows: np.ndarray
    unit: str = "row"
    class_names: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    texts: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    index: frozenset[str] = frozenset()

    def absent(self, name: str) -> np.ndarray:
        """Returns which rows have no value in a column of numbers or of objects, bool [N]."""
        column: Any = self.columns[name]
        if column.dtype.kind == "O":
            return np.array([value is None for value in column])
        return np.isnan(column)

    def at(self, rows: np.ndarray) -> Table:
        """Returns the table of some rows, in their order."""
        columns = {name: column[rows] for name, column in self.columns.items()}
        texts = {name: column[rows] for name, column in self.texts.items()}
        return dataclasses.replace(self, columns=columns, texts=texts, rows=self.rows[rows])

    def place(self, row: int) -> str:
        """Returns where a row stands, for errors."""
        return f"{self.unit} {self.rows[row]}"


def read(path: str | os.PathLike[str]) -> Table:
    """Reads a table whose first line, or schema, names its columns.

    Text is UTF-8, with or without a byte order mark, or UTF-16 with one. Fields with delimiters or
    line breaks are quoted. Cells lose the spaces around them; an empty cell is a missing value, and
    in a column of numbers so are NA, nan, null, none and ?. A column of true and false is one of
    numbers, 1 and 0.

    Args:
      path: a file that ends in `.csv`, `.tsv` or `.parquet`.

    Raises:
      ConfigError: a file that cannot be read, without rows, with lines of unequal numbers of
        fields, or with columns that have no name or one name.
    """
    path = expanded(path)
    if path.suffix.lower() == ".parquet":
        from mhd_jax.data import arrow  # which needs a package that only some have

        return arrow.read_parquet(path)
    return _read_text(path, _DELIMITERS[path.suffix.lower()])


def require_columns(names: Sequence[str], num_rows: int, where: str) -> None:
    """Raises `ConfigError` unless each column has a name of its own, and there are rows."""
    for number, name in enumerate(names, start=1):
        if not name:
            raise ConfigError(
                f"{where}: column {number} has no name; name it, or remove it (pandas leaves its index "
                "out by index=False)."
            )
        if names.index(name) < number - 1:
            raise ConfigError(f"{where}: two columns are called {name!r}; rename one of them.")
    if not num_rows:
        raise ConfigError(f"{where}: there are no rows below the columns' names; give some.")


def _read_text(path: pathlib.Path, delimiter: str) -> Table:
    reader = csv.reader(
        io.StringIO(_decoded(path), newline=""),
        delimiter=delimiter,
        skipinitialspace=True,
        strict=True,
    )
    cells, lines, start = [], [], 1
    limit = csv.field_size_limit(_LONGEST_FIELD)  # of the whole process
    try:
        for row in reader:
            if row:  # not an empty line
                cells.append([cell.strip() for cell in row])
                lines.append(start)
            start = reader.line_num + 1
    except csv.Error as error:
        raise ConfigError(
            f"{path}, line {start}: {error}; quote fields that hold quotes, and double these."
        ) from error
    finally:
        csv.field_size_limit(limit)
    if not cells:
        raise ConfigError(f"{path} is empty; its first line must name the columns.")
    names = cells[0]
    _require_delimiter(names, delimiter, path)
    require_columns(names, len(cells) - 1, str(path))
    for row, line in zip(cells, lines, strict=True):
        if len(row) != len(names):
            raise ConfigError(
                f"{path}, line {line}: {len(row)} fields, but the first line names {len(names)} columns; "
                "mend the line, and quote fields that hold a delimiter."
            )
    written = dict(zip(names, zip(*cells[1:], strict=True), strict=True))
    columns = {name: _typed(column) for name, column in written.items()}
    texts = {
        name: np.array(written[name], object)
        for name, column in columns.items()
        if column.dtype.kind == "f" and _are_codes(written[name], column)
    }
    return Table(path.name, columns, np.array(lines[1:]), "line", texts=texts)


def _decoded(path: pathlib.Path) -> str:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}.") from error
    marked = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        return content.decode("utf-16" if marked else "utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise ConfigError(
            f"{path}, line {line}: this is not {'UTF-16' if marked else 'UTF-8'}; save the file as UTF-8 "
            "(iconv -f latin1 -t utf-8 does so for Western European text)."
        ) from error


def _require_delimiter(names: Sequence[str], delimiter: str, path: pathlib.Path) -> None:
    for other, called in ((",", "commas"), ("\t", "tabs"), (";", "semicolons")):
        if len(names) == 1 and other != delimiter and other in names[0]:
            wanted = "tabs" if delimiter == "\t" else "commas"
            raise ConfigError(
                f"{path} seems to separate columns by {called}, but a {path.suffix} file does by "
                f"{wanted}; save or name it otherwise."
            )


def is_text(column: Any) -> bool:
    """Returns whether a column holds texts, and nothing else but missing ones."""
    objects = isinstance(column, np.ndarray) and column.dtype.kind == "O"
    return objects and all(value is None or isinstance(value, str) for value in column)


def _typed(cells: Sequence[str]) -> np.ndarray:
    """Returns a column as numbers, if all of its cells that are not missing are some, or as texts."""
    try:
        return np.array([number(cell) for cell in cells])
    except ValueError:
        return np.array([cell or None for cell in cells], object)


def _are_codes(cells: Sequence[str], numbers: np.ndarray) -> bool:
    """Returns whether cells hold whole numbers, some of them written otherwise than a number is."""
    there = ~np.isnan(numbers)
    if not (np.isfinite(numbers[there]).all() and (numbers[there] % 1 == 0).all()):
        return False
    return any(
        cell != str(int(number))
        for cell, number in zip(cells, numbers.tolist(), strict=True)
        if not (math.isnan(number) or "." in cell or cell.lower() in _TRUTHS)
    )


def number(cell: str) -> float:
    """Returns a cell's number, NaN for a missing one; `ValueError` if it holds something else."""
    known = cell.lower()
    if not cell or known in _MISSING:
        return math.nan
    if known in _TRUTHS:
        return _TRUTHS[known]
    if "_" in cell:  # which Python reads over
        raise ValueError
    return float(cell)
