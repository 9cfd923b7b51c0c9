"""Reading of data sets from files written by `numpy.savez`."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from mhd_jax.core.errors import ConfigError
from mhd_jax.core.files import expanded

_NAMES = ("images", "labels", "test_images", "test_labels", "class_names")
_SPELLINGS = (_NAMES, ("x_train", "y_train", "x_test", "y_test", "class_names"))
# As a word of a name, or after x or y: another array may well be called latest or values.
_OF_TESTS = re.compile(r"(?<![a-wz])(test|(val|valid|validation|dev)(?![a-z]))", re.IGNORECASE)


def read(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Reads the arrays of a data set from an .npz file.

    Args:
      path: a file with the arrays `images` and `labels`, and optionally `test_images`,
        `test_labels` and `class_names`; or with `x_train`, `y_train`, `x_test` and `y_test`.

    Returns:
      The arrays that the file holds, under the first of these names.

    Raises:
      ConfigError: a file that cannot be read, lacks images or labels, or has a split that would be
        passed over.
    """
    try:
        stored = np.load(expanded(path), allow_pickle=False)
    except Exception as error:  # NumPy and zipfile raise many types
        raise ConfigError(f"{path} cannot be read as an .npz file: {error}") from error
    if not isinstance(stored, np.lib.npyio.NpzFile):
        raise ConfigError(f"{path} holds a single array, not several; write it by numpy.savez.")
    with stored:
        for spelling in _SPELLINGS:
            if set(spelling[:2]) <= set(stored.files):
                break
        else:
            raise ConfigError(
                f"{path} needs the arrays images and labels (or x_train and y_train), but holds "
                f"{', '.join(stored.files) or 'none'}."
            )
        _require_all_read(stored.files, spelling, path)
        return {
            name: _array(stored, key, path)
            for name, key in zip(_NAMES, spelling, strict=True)
            if key in stored.files
        }


def _require_all_read(
    names: Sequence[str], spelling: Sequence[str], path: str | os.PathLike[str]
) -> None:
    """Raises `ConfigError` if arrays of another split or another spelling would be passed over."""
    known = set(itertools.chain(*_SPELLINGS))
    unread = [name for name in names if name in known or _OF_TESTS.search(name)]
    unread = [name for name in unread if name not in spelling]
    if unread:
        raise ConfigError(
            f"{path} holds {', '.join(unread)}, which would not be read beside {spelling[0]} and "
            f"{spelling[1]}; call a test split {spelling[2]} and {spelling[3]}, and leave out the rest."
        )


def _array(stored: Any, key: str, path: str | os.PathLike[str]) -> np.ndarray:
    try:
        array = stored[key]
        return array.astype(str).ravel() if key == "class_names" else array
    except Exception as error:  # NumPy, zipfile and zlib raise many types
        raise ConfigError(
            f"{key} in {path} cannot be read ({error}); the file is damaged, or the array holds "
            "Python objects instead of numbers; write it again."
        ) from error
