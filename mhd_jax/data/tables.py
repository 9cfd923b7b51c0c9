"""Data sets from tables: a row is a sample, one column holds its label, the others its features."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from mhd_jax.core.errors import ConfigError
from mhd_jax.core.shown import shortened
from mhd_jax.core.validation import require_kind
from mhd_jax.core.warned import warn
from mhd_jax.data.dataset import Dataset, arrays, held_out, take
from mhd_jax.data.features import Features
from mhd_jax.data.image_folders import SPLIT_NAMES, TEST_NAMES, TRAIN_NAMES
from mhd_jax.data.numbers import in_ranges
from mhd_jax.data.table_files import SPLIT, StoredImages, Table, is_text
from mhd_jax.data.texts import Vocabulary, vocabulary_of


def dataset(
    table: Table,
    *,
    label: str | None = None,
    features: str | Sequence[str] | None = None,
    owners: str | None = None,
    categories: str | None = None,
    missing: str | None = None,
    standardize: bool | None = None,
    test_fraction: float | None = None,
    pixels: bool | None = None,
    tokens: bool = False,
    vocabulary_size: int | None = None,
    regression: bool | None = None,
    image_size: int | None = None,
    channels: int | None = None,
    text: str | None = None,
    text_length: int | None = None,
    vocabulary: Vocabulary | None = None,
) -> Dataset:
    """Makes a data set of a table.

    Labels may be texts or whole numbers; sorted, they are the classes. A column of whole numbers
    that are not all written as such, like 007 or 1e5, is one of texts where it holds labels or
    owners. For a regression labels are any numbers, which clients learn to predict. If a column
    `split` holds
    train (or training) and test (or testing, val, valid, validation, dev: the first of these that
    is there), it determines the test split and is no feature; rows of other splits are left out,
    with a warning where they have other names than these.

    Args:
      table: from `mhd_jax.data.table_files.read`.
      label: the column of the labels.
      features: the columns that make up a sample, as a list or separated by commas; by default all
        others but the index of a frame that pandas wrote. Columns of numbers are one row [F]. A
        column of lists of equal lengths, or of images, is an array; several such columns are a
        dict of arrays.
      owners: a column that names each sample's owner, see `mhd_jax.data.arrays`.
      categories: "one_hot" makes a feature of each text in a column of texts, 1 for samples with
        that text and 0 for others. Texts are those of the training samples. None refuses columns
        of texts.
      missing: "mean" replaces a missing number by the mean of the training samples' numbers, and
        the features of a missing text by the shares of the texts. None refuses missing values.
      standardize: whether models see rows [F], or channels of images, with mean 0 and deviation 1
        over the training samples; by default rows. What is stored are the table's own numbers.
      test_fraction, pixels, tokens, vocabulary_size, regression: see `mhd_jax.data.arrays`.
      image_size, channels: for images, see `mhd_jax.data.image_folders.read`.
      text: a column of texts, which are the samples, as tokens: see `mhd_jax.data.texts`. Their
        vocabulary is that of the training samples, with V = `vocabulary_size` or less.
      text_length: L, how many tokens a text has; by default as many as the longest text of the
        training samples, and at most 256.
      vocabulary: the `Dataset.vocabulary` of another table, for texts that its clients are to read.

    Raises:
      ConfigError: columns or values that do not fit, with their place in the file.
    """
    require_kind("standardize", "bool | None", standardize)
    of_features = {
        "features": features,
        "categories": categories,
        "missing": missing,
        "standardize": standardize,
        "image_size": image_size,
        "channels": channels,
    }
    of_texts = {"text_length": text_length, "vocabulary": vocabulary}
    _require_one_kind(table, text, of_features, of_texts)
    if label is None:
        raise ConfigError(
            f"{table.name}: give label, the column of the labels; the columns are {_listed(table)}."
        )
    table, num_test = _by_split(table, {label, owners})
    labels, class_names = (_numbers if regression else _labels)(table, label)
    ids = None if owners is None else _named(table, owners, "owners")
    beside = {label: "label", owners: "owners"}
    names = _feature_names(table, features, beside) if text is None else []
    written = None if text is None else _texts(table, text, beside)
    num_training = len(labels) - num_test
    train = np.arange(num_training)
    if not num_test:
        strata, of_strata = labels, class_names
        if regression:
            _, strata, _, of_strata = in_ranges(labels, test_fraction=test_fraction)
        train, _ = held_out(strata, test_fraction, of_strata)
    if written is None:
        chosen = Features(table, train, categories, missing, image_size, channels)
        samples, feature_names = chosen.samples(names)
    else:
        vocabulary = _vocabulary(written[train], vocabulary, vocabulary_size, text_length)
        samples, feature_names = vocabulary(written), None
        tokens, vocabulary_size = True, len(vocabulary.words)
    content = {"images": samples, "labels": labels, "owners": ids}
    if num_test:
        test = take(content, slice(num_training, None))
        content = take(content, slice(num_training))
        content |= {f"test_{name}": values for name, values in test.items()}
    data = arrays(
        **content,
        test_fraction=test_fraction,
        class_names=class_names,
        pixels=pixels,
        tokens=tokens,
        vocabulary_size=vocabulary_size,
        regression=bool(regression),
        name=table.name,
    )
    is_rows = feature_names is not None
    data = dataclasses.replace(data, feature_names=feature_names, vocabulary=vocabulary)
    return data.prepared(standardize=is_rows if standardize is None else standardize)


def _require_one_kind(
    table: Table, text: str | None, of_features: Mapping[str, Any], of_texts: Mapping[str, Any]
) -> None:
    """Raises `ConfigError` for options of features beside a text, or of texts without one."""
    options = of_texts if text is None else of_features
    given = [name for name, value in options.items() if value is not None]
    if given and text is None:
        raise ConfigError(
            f"{', '.join(given)} of {table.name} is of texts; give text, the column that holds them, or "
            "leave it out."
        )
    if given:
        raise ConfigError(
            f"{', '.join(given)} of {table.name} is of features, but samples are the texts of the column "
            f"{text}; leave it or text out."
        )


def _texts(table: Table, name: str, beside: Mapping[str | None, str]) -> np.ndarray:
    """Returns a column of texts [N], which is none of those that are `beside` the samples."""
    column = _complete(table, name, "text")
    if name in beside:
        raise ConfigError(
            f"{table.name}: the column {name} is the {beside[name]}, and cannot be the text as well; give "
            "another column."
        )
    if name in table.texts or column.dtype.kind in "if":
        raise ConfigError(
            f"{table.name}: the column {name} holds numbers, like {column[0]}, but text is a column of "
            "texts; give another column, or features instead of text."
        )
    return column


def _vocabulary(
    texts: np.ndarray, given: Vocabulary | None, size: int | None, length: int | None
) -> Vocabulary:
    """Returns the vocabulary that is given, or that of training texts [N]."""
    if given is None:
        return vocabulary_of(texts, size, length)
    if (size, length) != (None, None):
        raise ConfigError(
            "a vocabulary brings its size and its length; leave vocabulary_size and text_length out."
        )
    if not isinstance(given, Vocabulary):
        raise ConfigError(
            f"vocabulary must be that of another data set, data.vocabulary, not {given!r:.60}."
        )
    return given


def _by_split(table: Table, others: Collection[str | None]) -> tuple[Table, int]:
    """Returns the rows to train on and, after them, those of the test split, and their number."""
    column: Any = table.columns.get(SPLIT)
    if SPLIT in others or not is_text(column):
        return table, 0
    splits = np.array([str(text).lower() for text in column])
    train, test = (
        next((np.flatnonzero(splits == name) for name in names if name in splits), None)
        for names in (TRAIN_NAMES, TEST_NAMES)
    )
    if train is None:
        return table, 0
    columns = {name: each for name, each in table.columns.items() if name != SPLIT}
    rows = train if test is None else np.concatenate([train, test])
    unused = np.setdiff1d(splits, [*splits[rows], *TEST_NAMES])
    if unused.size:
        warn(
            f"{table.name}: {np.isin(splits, unused).sum():,} of {len(splits):,} rows are left out, whose "
            f"split is {', '.join(shortened(unused.tolist()))}; call splits {SPLIT_NAMES}."
        )
    return dataclasses.replace(table, columns=columns).at(rows), len(rows) - len(train)


def _labels(table: Table, name: str) -> tuple[np.ndarray, tuple[str, ...]]:
    """Returns each row's class, int [N] in 0 … C − 1, and the names of the C classes."""
    column = _named(table, name, "label")
    if column.dtype.kind == "f":
        row = int(np.argmax(column % 1 != 0))
        raise ConfigError(
            f"{table.name}: the label {name} is {column[row]:g} in {table.place(row)}, but classes are "
            "texts or whole numbers; give regression=True to predict numbers."
        )
    if name in table.class_names:
        names = table.class_names[name]
        nameless = (column < 0) | (column >= len(names))
        if nameless.any():
            row = int(np.argmax(nameless))
            raise ConfigError(
                f"{table.name}: the label {name} is {column[row]} in {table.place(row)}, but its "
                f"classes are 0 … {len(names) - 1}; leave out rows without a label."
            )
        return column, names
    classes, codes = np.unique(column, return_inverse=True)
    if len(classes) < 2:
        raise ConfigError(
            f"{table.name}: the label {name} is {classes[0]} in every row; classification needs at "
            "least 2 classes."
        )
    return codes, tuple(map(str, classes))


def _numbers(table: Table, name: str) -> tuple[np.ndarray, tuple[str, ...]]:
    """Returns each row's target of a regression, [N], and its name."""
    column = _complete(table, name, "label")
    if column.dtype.kind not in "if":
        raise ConfigError(
            f"{table.name}: the label {name} holds texts, like {str(column[0])!r:.60}, but a regression is of "
            "numbers; leave regression out, or give another label."
        )
    beyond = np.flatnonzero(~np.isfinite(column))
    if beyond.size:
        raise ConfigError(
            f"{table.name}: the label {name} is {column[beyond[0]]} in {table.place(beyond[0])}; leave "
            "out such rows."
        )
    return column, (name,)


def _feature_names(
    table: Table, given: str | Sequence[str] | None, beside: Mapping[str | None, str]
) -> list[str]:
    """Returns the columns of features, which are none of those that are `beside` them."""
    if given is None:
        names = [name for name in table.columns if name not in beside and name not in table.index]
    else:
        listed = given.split(",") if isinstance(given, str) else given
        names = list(dict.fromkeys(str(name).strip() for name in listed))
    for name in names:
        _column(table, name, "features")
        if name in beside:
            raise ConfigError(
                f"{table.name}: the column {name} is the {beside[name]}, and no feature; leave it out "
                "of features."
            )
    if not names:
        raise ConfigError(f"{table.name}: no column is left for features; give some.")
    return names


def _named(table: Table, name: str, what: str) -> np.ndarray:
    """Returns a complete column of names: texts, or numbers unless they are written as codes are."""
    column = _complete(table, name, what)
    return table.texts[name].astype(str) if name in table.texts else column


def _complete(table: Table, name: str, what: str) -> np.ndarray:
    """Returns a column of texts or numbers without missing values; whole numbers are integers."""
    column = _column(table, name, what)
    if (
        isinstance(column, StoredImages)
        or column.ndim > 1
        or not (column.dtype.kind == "f" or is_text(column))
    ):
        raise ConfigError(
            f"{table.name}: {what} must be texts or numbers, but the column {name} holds lists, images, "
            "bytes that are not UTF-8, or other objects; give another column."
        )
    absent = np.flatnonzero(table.absent(name))
    if absent.size:
        raise ConfigError(
            f"{table.name}: the {what} {name} is missing in {len(absent):,} of {len(column):,} rows "
            f"({table.place(absent[0])} first); fill it in, or leave out these rows."
        )
    if column.dtype.kind == "O":
        return column.astype(str)
    whole = np.isfinite(column).all() and (column % 1 == 0).all() and np.abs(column).max() < 2**53
    return column.astype(np.int64) if whole else column


def _column(table: Table, name: str, what: str) -> np.ndarray | StoredImages:
    if name not in table.columns:
        known = {each.lower(): each for each in table.columns}
        close = difflib.get_close_matches(str(name).lower(), known, n=1)
        hint = f"did you mean {known[close[0]]}?" if close else f"the columns are {_listed(table)}."
        raise ConfigError(f"{table.name}: there is no column {name!r} for {what}; {hint}")
    return table.columns[name]


def _listed(table: Table) -> str:
    return ", ".join(shortened(list(table.columns)))
