"""Data sets of labelled samples with a test split, and the checks of users' arrays."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from mhd_jax.core.digests import array_digest
from mhd_jax.core.errors import ConfigError
from mhd_jax.core.shown import html_block, shortened
from mhd_jax.core.tasks import CLASSES, Task
from mhd_jax.core.validation import require_counts, require_kind
from mhd_jax.data import thumbnails
from mhd_jax.data.kinds import (
    as_arrays,
    kept,
    kept_as,
    kind_of,
    named_leaves,
    require_alike,
    shown,
    wrong_layout,
)
from mhd_jax.data.lazy_images import LazyImages
from mhd_jax.data.numbers import Targets, in_ranges
from mhd_jax.data.owners import Owners, owners_of
from mhd_jax.data.preprocessing import PLAIN, Preparation, scale
from mhd_jax.data.stratified import TEST_FRACTION, stratified_split
from mhd_jax.data.texts import PADDING, Vocabulary
from mhd_jax.data.tokens import vocabulary_size as vocabulary_size_of

PyTree = Any
_MOST_CLASSES = 2**20
_MOST_BYTES = 2**28  # of images over which channels' means and deviations are computed


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """A labelled data set with its test split.

    Attributes:
      name: the name for reports.
      inputs: training samples as stored: an array [N, ...], or a tree of arrays that all have
        the samples along their first axis.
      labels: int32 [N] in 0 … C − 1; of a regression, the range of each sample's targets.
      test_inputs: the test samples, in the form of `inputs`.
      test_labels: the test samples' labels.
      num_classes: C, the number of classes, or of ranges.
      class_names: C names.
      preparation: turns stored samples into model inputs.
      feature_names: the F features of samples [F] that are rows of a table; None for others.
      owners: the natural owner of each sample, where samples have one.
      vocabulary_size: V of samples that are tokens in 0 … V − 1; None for others.
      numbers: the targets of a regression; None for classification.
      vocabulary: what numbers the words of texts, where samples are texts; None for others.
    """

    name: str
    inputs: PyTree
    labels: np.ndarray
    test_inputs: PyTree
    test_labels: np.ndarray
    num_classes: int
    class_names: tuple[str, ...]
    preparation: Preparation = PLAIN
    feature_names: tuple[str, ...] | None = None
    owners: Owners | None = None
    vocabulary_size: int | None = None
    numbers: Targets | None = None
    vocabulary: Vocabulary | None = None

    @property
    def task(self) -> Task:
        """What clients learn to predict: classes, or numbers."""
        return CLASSES if self.numbers is None else self.numbers.task

    @property
    def num_outputs(self) -> int:
        """The outputs of a head: C classes, or D numbers."""
        return self.num_classes if self.numbers is None else len(self.numbers.names)

    @functools.cached_property
    def targets(self) -> np.ndarray:
        """What heads learn of the training samples: labels, or standardised numbers [N, D]."""
        found = self.numbers
        return self.labels if found is None else found.task.standardised(found.train)

    @functools.cached_property
    def test_targets(self) -> np.ndarray:
        """The same of the test samples."""
        found = self.numbers
        return self.test_labels if found is None else found.task.standardised(found.test)

    @property
    def padding(self) -> int | None:
        """The token that fills texts up; None for other samples."""
        return None if self.vocabulary is None else PADDING

    def samples(self, count: int) -> PyTree:
        """Returns the shapes and types of `count` samples as models see them."""
        stored = jax.tree.map(
            lambda a: jax.ShapeDtypeStruct((count, *a.shape[1:]), a.dtype), self.inputs
        )
        return jax.eval_shape(self.preparation, stored)

    @property
    def input_shape(self) -> tuple[int, ...] | None:
        """The shape of one sample as models see it; None if a sample is not one array."""
        sample = self.samples(1)
        return sample.shape[1:] if hasattr(sample, "shape") else None

    def __repr__(self) -> str:
        sizes = f"{len(self.labels):,} training and {len(self.test_labels):,} test samples"
        names = ", ".join(shortened(self.class_names, 10))
        kind = shown(self.inputs)
        if self.vocabulary is not None:
            kind = f"texts, in {self.vocabulary.length:,} tokens below {self.vocabulary_size:,}"
        elif self.vocabulary_size is not None:
            kind += f" (tokens below {self.vocabulary_size:,})"
        learned = f"{self.num_classes} classes: {names}"
        if self.numbers is not None:
            learned = f"targets {self.numbers}; {self.num_classes} ranges: {names}"
        return f"Dataset {self.name}: {sizes} of {kind}, {learned}"

    def _repr_html_(self) -> str:
        return html_block(repr(self), thumbnails.row(self))

    @property
    def kind(self) -> PyTree:
        """The shape and type of one sample as stored, for each array."""
        return kind_of(self.inputs)

    def require_images(self, what: str, otherwise: str) -> None:
        """Raises `ConfigError` unless a sample is one array [height, width, channels].

        Args:
          what: the subject and the verb of the error, e.g. "augmentation is".
          otherwise: the error's remedy for samples that are not images.
        """
        several = not hasattr(self.inputs, "shape")
        shape = () if several else self.inputs.shape[1:]
        wrong = wrong_layout(shape)
        if wrong:
            raise ConfigError(f"{what} for images [height, width, channels], but {wrong}.")
        if len(shape) != 3:
            found = "have several parts" if several else f"have shape {list(shape)}"
            raise ConfigError(
                f"{what} for images [height, width, channels], but samples of {self.name} {found}; "
                f"{otherwise}."
            )

    def require_alike(self, others: Dataset) -> None:
        """Raises `ConfigError` unless the samples of `others` have the same meaning as these."""
        if others.vocabulary != self.vocabulary:
            raise ConfigError(
                f"words are numbered by one vocabulary in {self.name}, and by another, or none, in "
                f"{others.name}; load one of them with vocabulary=data.vocabulary of the other."
            )
        require_alike(others.inputs, self.inputs, others.name, self.name)
        if self.vocabulary_size is not None:
            vocabulary_size_of([others.inputs], self.vocabulary_size)
        pairs = zip(others.feature_names or (), self.feature_names or (), strict=False)
        for other, own in pairs:
            if other != own:
                raise ConfigError(
                    f"{others.name} has the feature {other} where {self.name} has {own}; give both the "
                    "same features in the same order."
                )

    def prepared(self, *, crop_size: int | None = None, standardize: bool = False) -> Dataset:
        """Returns the data set with a centre crop of `crop_size` pixels and standardisation.

        `standardize` uses the mean and the deviation of each channel over all training images, or
        over 256 MiB of them, evenly spread; for rows of numbers [F], those of each number.

        Raises:
          ConfigError: samples that are neither images nor rows of numbers, or images smaller than
            the crop.
        """
        if crop_size is None and not standardize:
            return dataclasses.replace(self, preparation=PLAIN)
        if crop_size is None and _is_table(self.inputs):
            preparation = Preparation(None, *_column_statistics(self.inputs))
            return dataclasses.replace(self, preparation=preparation)
        self.require_images("crop_size and standardize are", "leave them out")
        sides = self.inputs.shape[1:3]
        if crop_size is not None and not 1 <= crop_size <= min(sides):
            raise ConfigError(
                f"crop_size must be in 1 … {min(sides)}, the images' smaller side, not {crop_size}."
            )
        mean, std = _channel_statistics(self.inputs) if standardize else ((), ())
        return dataclasses.replace(self, preparation=Preparation(crop_size, mean, std))


def arrays(
    images: Any,
    labels: Any,
    test_images: Any = None,
    test_labels: Any = None,
    *,
    test_fraction: float | None = None,
    num_classes: int | None = None,
    class_names: Sequence[str] | None = None,
    pixels: bool | None = None,
    tokens: bool = False,
    vocabulary_size: int | None = None,
    regression: bool = False,
    owners: Any = None,
    test_owners: Any = None,
    name: str = "arrays",
) -> Dataset:
    """Makes a data set from the user's own arrays.

    Args:
      images: an array [N, ...]; or a dict of such arrays, possibly nested, for samples of several
        parts or for samples that are not images.
      labels: integers [N] in 0 … C − 1; for a regression, numbers [N] or [N, D].
      test_images, test_labels: the test split. Without them a share `test_fraction` of the samples
        is set aside, stratified by class; it is the same in every call.
      test_fraction: in (0, 1), by default 0.2; not allowed with a test split.
      num_classes: C; by default the number of `class_names`, or the largest label plus one, and
        then every class must have samples. For a regression, the number of ranges, by default 10;
        there are fewer where numbers repeat, or samples are too few for a test split of all.
      class_names: C names, by default the labels; for a regression, the D names of the numbers.
      pixels: the meaning of integers. True: pixels in 0 … 255, scaled to [0, 1] on the device.
        False: tokens, categories or counts, which stay integers. None: an array in 0 … 255 (in a
        dict, only uint8) holds pixels, with a warning if that is unlikely; other integers stay
        integers. Floating-point numbers are never scaled.
      tokens: whether integers, such as sequences [N, L], are tokens in 0 … V − 1, which models
        embed.
      vocabulary_size: V; by default the largest token plus one.
      regression: whether clients learn to predict numbers instead of classes, see
        `mhd_jax.core.tasks` and `mhd_jax.data.numbers`.
      owners: the natural owner of each sample, such as its hospital, each of whom is then a client:
        an array or a list of N numbers or texts, or a dict from owners to the rows of their
        samples.
      test_owners: the same of a given test split; without one, test samples have owners, too.
      name: the name for reports.

    Raises:
      ConfigError: shapes, dtypes or labels that do not fit, named.
    """
    require_kind("num_classes", "int | None", num_classes)
    require_kind("test_fraction", "float | None", test_fraction)
    require_kind("pixels", "bool | None", pixels)
    require_kind("tokens", "bool", tokens)
    if tokens and pixels:
        raise ConfigError("integers are either pixels or tokens; leave one of the two out.")
    if vocabulary_size is not None and not tokens:
        raise ConfigError("vocabulary_size is that of tokens; give tokens=True, or leave it out.")
    require_kind("regression", "bool", regression)
    if class_names is not None and not isinstance(class_names, Sequence | np.ndarray):
        raise ConfigError(f"class_names must be a list of names, not {class_names!r}.")
    if num_classes is not None:
        require_counts(num_classes=num_classes)
    images = as_arrays(images, "images")
    targets = None
    if regression:
        targets, labels, test_labels, class_names = in_ranges(
            labels, test_labels, num_classes, class_names, test_fraction
        )
        num_classes = None
    labels = _checked(images, labels, "")
    images = kept(images, "images", False if tokens else pixels)
    if (test_images is None) != (test_labels is None):
        raise ConfigError("give both test_images and test_labels, or neither.")
    if test_images is not None:
        if test_fraction is not None:
            raise ConfigError("there is a test split already; leave test_fraction out.")
        test_images = as_arrays(test_images, "test_images")
        test_labels = _checked(test_images, test_labels, "test_")
        test_images = kept_as(kind_of(images), test_images, "test_images", "images")
    class_names = _named(class_names, num_classes, labels, test_labels)
    num_test = None if test_labels is None else len(test_labels)
    if test_owners is not None and owners is None:
        raise ConfigError("test_owners need owners of the training samples; give both.")
    owned = None if owners is None else owners_of(owners, test_owners, len(labels), num_test)
    splits = [images] if test_images is None else [images, test_images]
    vocabulary = vocabulary_size_of(splits, vocabulary_size) if tokens else None
    if test_images is None:
        train, test = held_out(labels, test_fraction, class_names)
        images, test_images = select(images, train), select(images, test)
        labels, test_labels = labels[train], labels[test]
        targets = targets and targets.held_out(train, test)
        owned = owned and owned.held_out(train, test)
    return Dataset(
        name,
        images,
        labels,
        test_images,
        test_labels,
        len(class_names),
        class_names,
        owners=owned,
        vocabulary_size=vocabulary,
        numbers=targets,
    )


def _named(
    class_names: Any, num_classes: int | None, labels: np.ndarray, test_labels: np.ndarray | None
) -> tuple[str, ...]:
    """Returns the classes' names, which labels fit; raises `ConfigError` where they do not."""
    if class_names is None:
        if num_classes is None:
            num_classes = _num_classes(labels, test_labels)
        if num_classes > _MOST_CLASSES:
            raise ConfigError(
                f"num_classes is {num_classes:,}, but at most {_MOST_CLASSES:,} can be; number "
                "classes without gaps."
            )
        class_names = range(num_classes)
    elif num_classes not in (None, len(class_names)):
        raise ConfigError(
            f"num_classes is {num_classes}, but there are {len(class_names)} class_names; leave "
            "num_classes out."
        )
    classes = len(class_names)
    for which, values in (("labels", labels), ("test_labels", test_labels)):
        if values is not None and (values.min() < 0 or values.max() >= classes):
            raise ConfigError(
                f"{which} must lie in 0 … {classes - 1}, but they span "
                f"{values.min()} … {values.max()}; count classes from 0."
            )
    if classes < 2:
        raise ConfigError("there is only one class; classification needs at least 2.")
    return tuple(map(str, class_names))


def _is_table(inputs: PyTree) -> bool:
    """Returns whether samples are rows of floating-point numbers [F]."""
    return isinstance(inputs, np.ndarray) and inputs.ndim == 2 and inputs.dtype == np.float32


def _column_statistics(rows: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Returns the mean and the deviation of each column [N, F]; 1 for a column of one value."""
    std = rows.std(axis=0, dtype=np.float64)
    std[np.ptp(rows, axis=0) == 0] = 1
    return tuple(rows.mean(axis=0, dtype=np.float64).tolist()), tuple(std.tolist())


def _channel_statistics(images: Any) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Returns the mean and the deviation of each channel, for pixels scaled to [0, 1].

    The deviation of a channel of one value, like an opaque alpha channel, is 1.
    """
    most = max(1, _MOST_BYTES // (int(np.prod(images.shape[1:])) * images.dtype.itemsize))
    rows = np.linspace(0, len(images) - 1, min(len(images), most)).astype(int)
    total, squares, pixels = 0.0, 0.0, 0
    low, high = np.inf, -np.inf
    for part in np.array_split(rows, -(-len(rows) // 1000)):
        values = np.asarray(scale(images[part]), np.float64)
        total += values.sum(axis=(0, 1, 2))
        squares += np.square(values).sum(axis=(0, 1, 2))
        low = np.minimum(low, values.min(axis=(0, 1, 2)))
        high = np.maximum(high, values.max(axis=(0, 1, 2)))
        pixels += values[..., 0].size
    mean = total / pixels
    std = np.where(low == high, 1, np.sqrt(np.maximum(squares / pixels - np.square(mean), 1e-12)))
    return tuple(np.atleast_1d(mean).tolist()), tuple(np.atleast_1d(std).tolist())


def _num_classes(labels: np.ndarray, test_labels: np.ndarray | None) -> int:
    """Returns the largest label plus one; `ConfigError` if a class has no training samples."""
    largest = int(max(values.max() for values in (labels, test_labels) if values is not None))
    present = set(np.unique(labels).tolist())
    missing = (label for label in range(largest + 1) if label not in present)
    first = list(itertools.islice(missing, 5))
    if first == [0]:
        raise ConfigError(
            f"labels lie in 1 … {largest} and none is 0: count classes from 0, or give num_classes if "
            "class 0 is meant to be empty."
        )
    if first and (min(present) >= 0 or largest >= _MOST_CLASSES):
        raise ConfigError(
            f"of the classes 0 … {largest}, some have no training samples ({', '.join(map(str, first))}"
            " first); number classes without gaps, or give num_classes if they are meant to be empty."
        )
    return largest + 1


def held_out(
    labels: np.ndarray, test_fraction: float | None, class_names: Sequence[str]
) -> tuple[np.ndarray, np.ndarray]:
    """Returns training rows and test rows, stratified by class, the same in every call.

    Args:
      labels: the class of each sample, [N] in 0 … C − 1.
      test_fraction: the share of the samples to set aside, in (0, 1), by default 0.2.
      class_names: C names, for errors.

    Raises:
      ConfigError: a class with too few samples, or a fraction that leaves one of them none.
    """
    test_fraction = TEST_FRACTION if test_fraction is None else test_fraction
    if not 0 < test_fraction < 1:
        raise ConfigError(f"test_fraction must be in (0, 1), not {test_fraction}.")
    present, counts = np.unique(labels, return_counts=True)
    if counts.min() < 2:
        raise ConfigError(
            f"class {class_names[present[counts.argmin()]]} has one sample, but a stratified test "
            "split needs at least 2 of each class; add samples, or give a test split of your own."
        )
    try:
        train, test = stratified_split(labels, test_fraction)
    except ValueError as error:
        raise ConfigError(
            f"cannot set aside a stratified test split: {error}; change test_fraction."
        ) from error
    emptied = np.setdiff1d(present, labels[train])
    if emptied.size:
        raise ConfigError(
            f"test_fraction {test_fraction} leaves class {class_names[emptied[0]]} no sample to "
            "train on; lower it."
        )
    return train, test


def _checked(images: PyTree, labels: Any, prefix: str) -> np.ndarray:
    """Returns labels as int32 [N] after checking that they match the samples."""
    labels = as_arrays(labels, f"{prefix}labels")
    if isinstance(labels, dict):
        raise ConfigError(f"{prefix}labels must be one array, not a dict; give one of its parts.")
    named = named_leaves(images, f"{prefix}images")
    if not named:
        raise ConfigError(f"{prefix}images hold no array.")
    for name, leaf in named:
        if len(leaf.shape) < (1 if isinstance(images, dict) else 2) or 0 in leaf.shape:
            raise ConfigError(
                f"{name} must have shape [N, ...] with N > 0 and no empty axis, not "
                f"{list(leaf.shape)}."
            )
        if labels.shape != (len(leaf),):
            raise ConfigError(
                f"{prefix}labels must have shape [{len(leaf)}], one for each sample of {name}, "
                f"not {list(labels.shape)}{_one_each(labels.shape, len(leaf), prefix)}."
            )
    if labels.dtype.kind not in "iu":
        raise ConfigError(
            f"{prefix}labels must be integers, not {labels.dtype}; {_numbered(labels.dtype, prefix)}."
        )
    if labels.max() >= 2**31 or labels.min() < -(2**31):
        raise ConfigError(
            f"{prefix}labels must lie in 0 … C − 1, but they span {labels.min()} … {labels.max()}; "
            "count classes from 0."
        )
    return labels.astype(np.int32)


def _one_each(shape: tuple[int, ...], size: int, prefix: str) -> str:
    """Returns how to make labels of a common other shape [size], in a sentence."""
    if shape == (size, 1):
        return f"; give {prefix}labels[:, 0]"
    if len(shape) == 2 and shape[0] == size:
        return f"; give {prefix}labels.argmax(axis=1) where rows are one-hot"
    return ""


def _numbered(dtype: np.dtype, prefix: str) -> str:
    """Returns how to make labels of another type integers, in a sentence."""
    if dtype.kind in "OSUT":
        return (
            f"number names by class_names, {prefix}labels = np.unique({prefix}labels, "
            "return_inverse=True)"
        )
    return (
        f"give {prefix}labels.astype(int) where they are classes, or regression=True to predict "
        "numbers"
    )


def digest(data: Dataset) -> str:
    """Returns a digest of all samples and their targets, of both splits, as runs record it."""
    contents = (data.inputs, data.targets, data.test_inputs, data.test_targets)
    return array_digest(*jax.tree.leaves(contents))


def take(inputs: PyTree, rows: np.ndarray | slice) -> PyTree:
    """Returns the samples of the given rows, an array of any shape or a slice, on the host."""
    return jax.tree.map(lambda a: a[rows], inputs)


def in_parts(inputs: PyTree, at_once: int) -> PyTree:
    """Returns samples [N, ...] in parts of `at_once`, [parts, at_once, ...], on the host.

    Samples from the first on fill up the last part; there are no more parts than it takes.
    """
    size = len(jax.tree.leaves(inputs)[0])
    return take(inputs, np.resize(np.arange(size), (-(-size // at_once), min(at_once, size))))


def select(inputs: PyTree, rows: np.ndarray) -> PyTree:
    """Returns the samples of the given rows like `take`, but leaves lazy images unread."""
    return jax.tree.map(lambda a: a.select(rows) if isinstance(a, LazyImages) else a[rows], inputs)
