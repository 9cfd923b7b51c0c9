"""Tables in Arrow's formats: Parquet files, and folders that Hugging Face `datasets` saves.

Both keep the names of classes in their schema where Hugging Face's library wrote them.
"""

from __future__ import annotations

import contextlib
import json
import pathlib
import re
from typing import Any

import numpy as np

from mhd_jax.core.errors import ConfigError, in_a_line
from mhd_jax.core.extras import require
from mhd_jax.data.table_files import SPLIT, StoredImages, Table, require_columns

_OF_SPLITS, _OF_FILES = "dataset_dict.json", "state.json"
_UNNAMED_INDEX = re.compile(r"__index_level_\d+__")  # as pandas calls it; `datasets` keeps the name


def read_parquet(path: pathlib.Path) -> Table:
    """Reads a Parquet file."""
    parquet = require("pyarrow.parquet")
    try:
        found = parquet.ParquetFile(path).read()
    except Exception as error:  # Arrow raises many types
        raise ConfigError(f"{path} cannot be read as Parquet ({in_a_line(error)}).") from error
    return _table(found, path)


def is_saved_dataset(folder: pathlib.Path) -> bool:
    """Returns whether `save_to_disk` of Hugging Face's library wrote a folder."""
    return any((folder / name).is_file() for name in (_OF_SPLITS, _OF_FILES))


def read_saved_dataset(folder: pathlib.Path) -> Table:
    """Reads a data set, or several splits of one, that `save_to_disk` has written.

    The name of each row's split is in the column `split`.
    """
    arrow = require("pyarrow")
    if not (folder / _OF_SPLITS).is_file():
        return _table(_saved(folder), folder)
    splits = _json(folder / _OF_SPLITS).get("splits", [])
    tables = []
    for name in splits:
        part = _saved(folder / name)
        if SPLIT not in part.column_names:
            part = part.append_column(SPLIT, arrow.array([name] * len(part), arrow.string()))
        tables.append(part)
    return _table(_joined(tables, folder), folder)


def _saved(folder: pathlib.Path) -> Any:
    """Returns the Arrow table of one split."""
    arrow = require("pyarrow")
    files = [each["filename"] for each in _json(folder / _OF_FILES).get("_data_files", [])]
    tables = []
    for name in files:
        try:
            with arrow.memory_map(str(folder / name)) as file:
                tables.append(arrow.ipc.open_stream(file).read_all())
        except Exception as error:  # Arrow raises many types
            raise ConfigError(f"{folder / name} cannot be read ({in_a_line(error)}).") from error
    return _joined(tables, folder)


def _joined(tables: list[Any], folder: pathlib.Path) -> Any:
    if not tables:
        raise ConfigError(f"{folder} names no files of data; save the data set again.")
    try:
        return require("pyarrow").concat_tables(tables)
    except ValueError as error:
        raise ConfigError(f"the parts of {folder} have unlike columns; save them again.") from error


def _json(path: pathlib.Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return dict(found)
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(f"{path} cannot be read ({in_a_line(error)}).") from error


def _table(found: Any, path: pathlib.Path) -> Table:
    """Converts an Arrow table."""
    names = found.column_names
    require_columns(names, len(found), str(path))
    columns = {name: _column(found.column(name)) for name in names}
    return Table(
        path.name,
        columns,
        np.arange(len(found)),
        class_names=_class_names(found.schema),
        texts={name: _texts(found.column(name)) for name in names if _is_long(found.column(name))},
        index=_index(found.schema),
    )


def _is_long(column: Any) -> bool:
    """Returns whether a column has whole numbers that float64 does not tell from their neighbours."""
    if not require("pyarrow").types.is_integer(column.type):
        return False
    return bool((np.abs(column.cast("float64", safe=False).to_numpy()) >= 2**53).any())


def _texts(column: Any) -> np.ndarray:
    return _objects([_text(value) for value in column.to_pylist()])


def _column(column: Any) -> np.ndarray | StoredImages:
    """Returns a column as `Table` has it; dates and the like are texts."""
    types = require("pyarrow").types
    if types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    kind = column.type
    if types.is_null(kind) or types.is_boolean(kind):
        column = column.cast("int8")
    if any(is_kind(column.type) for is_kind in _numbers(types)):
        return column.cast("float64", safe=False).to_numpy().astype(np.float64)
    values = column.to_pylist()
    if types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        return StoredImages(tuple(_file(value) for value in values))
    if types.is_nested(kind):
        with contextlib.suppress(ValueError):  # of unequal lengths
            found = np.array(values)
            if found.dtype.kind in "iuf":
                return found
        return _objects(values)
    with contextlib.suppress(UnicodeDecodeError):  # bytes that are no text stay as they are
        return _texts(column)
    return _objects(values)


def _text(value: Any) -> str | None:
    """Returns a value's text, None if it has none; some writers keep texts as bytes, in UTF-8."""
    if value is None:
        return None
    return (value.decode() if isinstance(value, bytes) else str(value)).strip() or None


def _numbers(types: Any) -> tuple[Any, ...]:
    return (types.is_integer, types.is_floating, types.is_decimal)


def _file(value: dict[str, Any] | None) -> bytes | str | None:
    """Returns an image's content, or the path of its file."""
    return None if value is None else value["bytes"] or value.get("path")


def _objects(values: list[Any]) -> np.ndarray:
    if all(value is None for value in values):
        return np.full(len(values), np.nan)
    found = np.empty(len(values), object)
    found[:] = values
    return found


def _class_names(schema: Any) -> dict[str, tuple[str, ...]]:
    """Returns the names of classes that Hugging Face's library writes beside a table."""
    try:
        features = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
        named = {name: each["names"] for name, each in features.items() if "names" in each}
        return {name: tuple(map(str, names)) for name, names in named.items()}
    except (TypeError, KeyError, ValueError, AttributeError):  # another writer
        return {}


def _index(schema: Any) -> frozenset[str]:
    """Returns the columns that were a frame's index in pandas."""
    unnamed = {name for name in schema.names if _UNNAMED_INDEX.fullmatch(name)}
    try:
        noted = json.loads(schema.metadata[b"pandas"])["index_columns"]
        return frozenset(unnamed.union(name for name in noted if name in schema.names))
    except (TypeError, KeyError, ValueError):  # another writer
        return frozenset(unnamed)
