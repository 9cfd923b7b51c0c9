"""Reads and writes JSON files: writes are atomic, and damaged files give a one-line error."""

from __future__ import annotations

import json
import math
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from mhd_jax.core.errors import ConfigError
from mhd_jax.core.files import written_whole


def jsonable(value: Any) -> Any:
    """Converts `value` to JSON's types.

    Arrays become lists, NaN becomes None, infinity "inf", and functions become their names.
    """
    if isinstance(value, Mapping):
        return {str(key): jsonable(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [jsonable(entry) for entry in value]
    if isinstance(value, np.ndarray | jax.Array):
        return jsonable(np.asarray(value).tolist())
    if isinstance(value, np.generic):
        return jsonable(value.item())
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else str(value)
    if callable(value):
        return f"{value.__module__}.{getattr(value, '__qualname__', value)}"
    return value


def read_json(path: pathlib.Path) -> dict[str, Any]:
    """Reads a JSON object from a file; `ConfigError` if the file is missing or damaged."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path} cannot be read: {error}.") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path} does not hold a JSON object.")
    return content


def write_json(path: pathlib.Path, content: Any) -> None:
    """Writes a JSON file atomically: a reader never sees half of it."""
    write_text(path, json.dumps(jsonable(content), indent=2) + "\n")


def write_text(path: pathlib.Path, text: str) -> None:
    """Writes a text file atomically."""
    with written_whole(path) as partial:
        partial.write_text(text, encoding="utf-8")
