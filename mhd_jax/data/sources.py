"""Loading of data sets: scikit-learn's digits, prepared data sets, users' files or arrays."""

from __future__ import annotations

import importlib.util
import inspect
import os
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from mhd_jax.core.errors import ConfigError
from mhd_jax.core.files import expanded
from mhd_jax.data import arrow, image_folders, npz, table_files, tables, tfds
from mhd_jax.data.dataset import Dataset, arrays

EMBEDDED = ("digits",)
_ONLY_OF_PREPARED = ("data_dir", "train_split", "test_split")
_OF_PREPARED = (*_ONLY_OF_PREPARED, "image_size", "in_memory")
_OF_ARRAYS = (
    "test_fraction",
    "num_classes",
    "pixels",
    "tokens",
    "vocabulary_size",
    "regression",
)
_OF_FOLDERS = ("image_size", "channels", "in_memory")
_OF_TABLES = tuple(inspect.signature(tables.dataset).parameters)[1:]
_OWN = (
    f"a folder of images, an .npz file, or a table ({', '.join(table_files.SUFFIXES)}, or a folder that "
    "Hugging Face's library saved)"
)


def load(source: Any = "digits", **options: Any) -> Dataset:
    """Loads a data set by name or path, or makes one from arrays.

    Arrays are given as `(images, labels)`, or with a test split as
    `((images, labels), (test_images, test_labels))`.

    "digits" is scikit-learn's 1,797 handwritten digits, 8 × 8, with a fixed stratified test
    split of 360. Other names are those of tensorflow-datasets; such data sets must be prepared
    before (`mhd prepare`).

    A path names a folder of images (see `mhd_jax.data.image_folders`), an ``.npz`` file (see
    `mhd_jax.data.npz`) or a table: a ``.csv``, ``.tsv`` or ``.parquet`` file, or a folder that
    Hugging Face's library `datasets` saved (see `mhd_jax.data.tables`). A plain word is always a
    name: write the folder `digits` of the working directory as "./digits", or as a `pathlib.Path`.

    Args:
      source: a name, a path, or arrays.
      **options: for a prepared data set, `data_dir`, `train_split`, `test_split`, `image_size`
        and `in_memory` (see `mhd_jax.data.tfds.read`); for a folder, `image_size`, `channels` and
        `in_memory` (see `mhd_jax.data.image_folders.read`); for a table, `label`, `features` or
        `text`, and others (see `mhd_jax.data.tables.dataset`); for all but prepared data sets,
        `test_fraction`, and for arrays and ``.npz`` files, `num_classes`, `pixels`, `tokens`,
        `vocabulary_size` and `regression` (see `arrays`); for arrays, also `class_names`, `owners`,
        `test_owners` and `name`.

    Raises:
      ConfigError: an unknown name, a path that does not exist, unsuitable content, or options of
        another kind of source.
    """
    if isinstance(source, Dataset):
        _refuse_foreign(options, "a loaded data set")
        return source
    if isinstance(source, tuple | list) and len(source) == 2:
        named = ("class_names", "owners", "test_owners", "name")
        _refuse_foreign(options, "arrays", *_OF_ARRAYS, *named)
        train, test = source
        if isinstance(train, tuple) and isinstance(test, tuple):
            if (len(train), len(test)) != (2, 2):
                raise ConfigError(
                    f"two splits are two pairs, ((images, labels), (test_images, test_labels)), but these "
                    f"have {len(train)} and {len(test)} entries; give images and labels of each."
                )
            return arrays(*train, *test, **options)
        return arrays(train, test, **options)
    if isinstance(source, str) and source == "digits":
        _refuse_foreign(options, "digits", *options_of(source))
        pixels, labels = _digits()
        images = (pixels / 16).astype(np.float32)[..., None]
        return arrays(images, labels, name="digits", **options)
    if _is_path(source, options):
        return _from_path(expanded(source), options)
    if hasattr(source, "shape") or isinstance(source, Mapping):
        raise ConfigError(
            f"samples {_shown(source)} have no labels; give (samples, labels). Of a public set, whose "
            "labels nobody sees, any will do."
        )
    if not isinstance(source, str) or not tfds.NAME.fullmatch(source):
        raise ConfigError(
            f"unknown dataset {_shown(source)}; choose {', '.join(EMBEDDED)} or a name of "
            f"tensorflow-datasets, or give your own: (images, labels) arrays, or the path, like ./name, "
            f"of {_OWN}."
        )
    _refuse_foreign(options, "a prepared data set", *options_of(source, options))
    content = tfds.read(source, **{"data_dir": None, **options})
    return arrays(**content, pixels=True, name=source)


def _digits() -> tuple[np.ndarray, np.ndarray]:
    """Returns scikit-learn's digits, [N, 8, 8] and [N], without its import of over a second."""
    package = importlib.util.find_spec("sklearn")
    folder = pathlib.Path(package.origin if package and package.origin else "").parent
    try:
        table = np.loadtxt(folder / "datasets" / "data" / "digits.csv.gz", delimiter=",")
    except OSError:  # another version keeps them elsewhere
        from sklearn.datasets import load_digits

        return load_digits().images, load_digits().target
    return table[:, :-1].reshape(-1, 8, 8), table[:, -1].astype(int)


def options_of(source: Any, given: Iterable[str] = ()) -> tuple[str, ...]:
    """Returns the options that `load` takes for a name or a path, if these options are `given`."""
    if isinstance(source, str) and source == "digits":
        return ("test_fraction",)
    if not _is_path(source, given):
        return _OF_PREPARED
    path = expanded(source)
    if _is_table(path):
        return _OF_TABLES
    if os.path.isdir(path):
        return (*_OF_FOLDERS, "test_fraction")
    return _OF_ARRAYS


def _is_table(path: pathlib.Path) -> bool:
    if os.path.isdir(path):
        return arrow.is_saved_dataset(path)
    return path.suffix.lower() in table_files.SUFFIXES


def _from_path(path: pathlib.Path, options: dict[str, Any]) -> Dataset:
    if not os.path.exists(path):
        raise ConfigError(f"{path} does not exist; give {_OWN}.")
    if _is_table(path):
        _refuse_foreign(options, "a table", *options_of(path))
        is_folder = os.path.isdir(path)
        table = arrow.read_saved_dataset(path) if is_folder else table_files.read(path)
        return tables.dataset(table, **options)
    if os.path.isdir(path):
        _refuse_foreign(options, "a folder of images", *options_of(path))
        own = {key: options.pop(key) for key in _OF_FOLDERS if key in options}
        content = image_folders.read(path, **own)
        return arrays(**content, **options, pixels=True, name=path.resolve().name)
    if path.suffix != ".npz" or not path.is_file():
        raise ConfigError(f"{path} is none of what can be read: {_OWN}.")
    _refuse_foreign(options, "an .npz file", *options_of(path))
    return arrays(**npz.read(path), **options, name=path.name)


def _is_path(source: Any, given: Iterable[str]) -> bool:
    """Returns whether `source` is a path; names of tensorflow-datasets may have a slash too."""
    if not isinstance(source, str):
        return isinstance(source, os.PathLike)
    if source.lower().endswith((".npz", *table_files.SUFFIXES)):
        return True
    if not tfds.NAME.fullmatch(source):
        return "/" in source
    return "/" in source and os.path.exists(source) and not set(given) & set(_ONLY_OF_PREPARED)


def _refuse_foreign(options: dict[str, Any], source: str, *known: str) -> None:
    foreign = sorted(options.keys() - set(known))
    if foreign:
        raise ConfigError(
            f"{', '.join(foreign)} cannot go with {source}, which takes "
            f"{', '.join(known) or 'no options'}; leave out what does not apply, or choose another "
            "dataset."
        )


def _shown(source: Any) -> str:
    return repr(source) if isinstance(source, str) else f"of type {type(source).__name__}"
