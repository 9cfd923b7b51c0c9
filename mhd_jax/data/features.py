"""Columns of a table as samples: numbers, categories, missing values, lists and images."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Sequence
from typing import Any, BinaryIO

import numpy as np

from mhd_jax.core.errors import ConfigError
from mhd_jax.core.shown import shortened
from mhd_jax.data import image_folders
from mhd_jax.data.kinds import coarse
from mhd_jax.data.table_files import StoredImages, Table, is_text, number

CATEGORIES = ("one_hot",)
MISSING = ("mean",)
_MOST_CATEGORIES = 256
_MOST_NAMED = 6
_LARGEST = float(np.finfo(np.float32).max)


@dataclasses.dataclass(frozen=True, eq=False)
class Features:
    """The choices by which columns become samples.

    Attributes:
      table: the columns.
      train: the rows of the training samples, from which alone something is learnt.
      categories: "one_hot" makes a feature of each text in a column of texts; None refuses these.
      missing: "mean" replaces missing values by the training samples' mean; None refuses them.
      image_size, channels: see `mhd_jax.data.image_folders.read`.

    Raises:
      ConfigError: an unknown choice.
    """

    table: Table
    train: np.ndarray
    categories: str | None
    missing: str | None
    image_size: int | None
    channels: int | None

    def __post_init__(self):
        for name, known in (("categories", CATEGORIES), ("missing", MISSING)):
            given = getattr(self, name)
            if given is not None and given not in known:
                raise ConfigError(
                    f"{name} must be {' or '.join(known)}, or be left out, not {given!r}."
                )

    def samples(self, names: Sequence[str]) -> tuple[Any, tuple[str, ...] | None]:
        """Returns all samples of these columns, and the names of features if they are rows [F].

        Columns of numbers and texts become rows of numbers. Otherwise the column is the array of
        samples, and several columns are a dict of arrays.

        Raises:
          ConfigError: a column that the choices do not allow, with the place of the first value.
        """
        stored = (isinstance(self.table.columns[name], StoredImages) for name in names)
        if (self.image_size, self.channels) != (None, None) and not any(stored):
            raise ConfigError(
                f"{self.table.name}: image_size and channels are for columns of images, but features "
                "have none; leave them out."
            )
        if not any(map(self._is_array, names)):
            return self._rows(names)
        parts = {name: self._part(name) for name in names}
        return (parts[names[0]] if len(parts) == 1 else parts), None

    def _is_array(self, name: str) -> bool:
        column = self.table.columns[name]
        return isinstance(column, StoredImages) or column.ndim > 1

    def _part(self, name: str) -> np.ndarray:
        column = self.table.columns[name]
        if isinstance(column, StoredImages):
            return self._images(name, column)
        return column if column.ndim > 1 else self._rows([name])[0]

    def _rows(self, names: Sequence[str]) -> tuple[np.ndarray, tuple[str, ...]]:
        """Returns columns of numbers and texts as float64 [N, F], and the names of the features."""
        blocks, titles, lacking = [], [], []
        for name in names:
            column: Any = self.table.columns[name]
            absent = self.table.absent(name)
            if column.dtype.kind == "O":
                texts = self._texts(name, column)
                block = np.array(column[:, None] == np.array(texts, object), np.float64)
                block[absent] = np.nan
                titles += [f"{name}={text}" for text in texts]
            else:
                self._require_finite(name, column)
                block = column[:, None]
                titles.append(name)
            blocks.append(block)
            lacking += [(name, np.flatnonzero(absent))] if absent.any() else []
        rows = np.concatenate(blocks, axis=1)
        rows = self._completed(rows, lacking) if lacking else rows
        lost = coarse(rows)
        if lost.size:
            raise ConfigError(
                f"{self.table.name}: the column {titles[lost[0]]} holds numbers that differ by less than "
                "float32 tells at their size; subtract an offset, such as the smallest, in all of your "
                "tables, or leave the column out of features."
            )
        return rows, tuple(titles)

    def _completed(self, rows: np.ndarray, lacking: Sequence[tuple[str, np.ndarray]]) -> np.ndarray:
        """Returns the rows with each column's mean over training samples for what is missing."""
        if self.missing is None:
            told = [
                f"{name} has none in {len(absent):,} of {len(rows):,} rows ({self.table.place(absent[0])} "
                "first)"
                for name, absent in lacking
            ]
            raise ConfigError(
                f"{self.table.name}: values are missing: {', '.join(shortened(told, _MOST_NAMED))}; fill "
                "them in, leave these columns out of features, or give missing='mean', the mean of "
                "the training samples."
            )
        for name, absent in lacking:
            if np.isin(self.train, absent).all():
                raise ConfigError(
                    f"{self.table.name}: no training sample has a value in the column {name}; leave it "
                    "out of features."
                )
        return np.where(np.isnan(rows), np.nanmean(rows[self.train], axis=0), rows)

    def _texts(self, name: str, column: np.ndarray) -> list[str]:
        """Returns the different texts of the training samples in a column, sorted."""
        where = f"{self.table.name}: the column {name} holds"
        if not is_text(column):
            raise ConfigError(
                f"{where} lists of unequal lengths, bytes that are not UTF-8, or other objects; make them "
                "alike, or leave the column out of features."
            )
        if self.categories is None:
            row = _first_text(column)
            raise ConfigError(
                f"{where} texts, like {column[row]!r:.60} in {self.table.place(row)}; turn them into "
                "numbers, leave the column out of features, or give categories='one_hot', which makes "
                f"a feature of each text, or text={name!r}, which reads their words."
            )
        texts = sorted({text for text in column[self.train] if text is not None})
        if len(texts) > _MOST_CATEGORIES:
            raise ConfigError(
                f"{where} {len(texts):,} different texts, but categories may be at most "
                f"{_MOST_CATEGORIES}; leave the column out of features, or group its texts."
            )
        return texts

    def _require_finite(self, name: str, column: np.ndarray) -> None:
        beyond = np.flatnonzero(np.abs(column) > _LARGEST)
        if beyond.size:
            raise ConfigError(
                f"{self.table.name}: the column {name} holds {column[beyond[0]]:g} in "
                f"{self.table.place(beyond[0])}, beyond float32; mend it, leave it empty, or leave the "
                "column out of features."
            )

    def _images(self, name: str, column: StoredImages) -> np.ndarray:
        """Decodes a column of images, uint8 [N, H, W, channels]."""
        if None in column.files:
            raise ConfigError(
                f"{self.table.name}: the column {name} has no image in "
                f"{self.table.place(column.files.index(None))}; leave out such rows."
            )
        files: list[BinaryIO | str] = [
            io.BytesIO(file) if isinstance(file, bytes) else str(file) for file in column.files
        ]
        places = [
            f"{self.table.name}, {self.table.place(row)}: {name}" for row in range(len(files))
        ]
        return image_folders.decode_all(files, places, self.image_size, self.channels)


def _first_text(column: np.ndarray) -> int:
    """Returns the first row whose text is no number, or else the first with a text."""
    there = [row for row, text in enumerate(column) if text is not None]
    for row in there:
        try:
            number(column[row])
        except ValueError:
            return row
    return there[0]
