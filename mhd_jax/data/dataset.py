"""Labelled samples with a test split, and the checks that arrays must pass to be one."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from mhd_jax.data.lazy import LazyImages
from mhd_jax.data.preparation import PLAIN, Preparation, scale
from mhd_jax.errors import ConfigError

PyTree = Any
_MOST_BYTES = 2**28  # of the images from which means and deviations are taken


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """A labelled classification data set with its test split.

    Attributes:
      name: for reports.
      inputs: training samples as stored: an array [N, ...], or a tree of arrays that all have
        the samples along their first axis.
      labels: int32 [N] in 0 … C − 1.
      test_inputs: the same for the test split.
      test_labels: its labels.
      num_classes: C.
      class_names: C names.
      preparation: how stored samples become what models see.
    """

    name: str
    inputs: PyTree
    labels: np.ndarray
    test_inputs: PyTree
    test_labels: np.ndarray
    num_classes: int
    class_names: tuple[str, ...]
    preparation: Preparation = PLAIN

    def samples(self, count: int) -> PyTree:
        """Shapes and types of that many samples as models see them."""
        stored = jax.tree.map(
            lambda a: jax.ShapeDtypeStruct((count, *a.shape[1:]), a.dtype), self.inputs
        )
        return jax.eval_shape(self.preparation, stored)

    @property
    def input_shape(self) -> tuple[int, ...] | None:
        """Shape of one sample as models see it; None where it is not one array."""
        sample = self.samples(1)
        return sample.shape[1:] if hasattr(sample, "shape") else None

    @property
    def is_images(self) -> bool:
        """Whether a sample is one array [height, width, channels]."""
        return hasattr(self.inputs, "shape") and len(self.inputs.shape) == 4

    def prepared(self, *, crop_size: int | None = None, standardize: bool = False) -> Dataset:
        """The same images, whose middle of `crop_size` pixels models see, standardised or not.

        Means and deviations are the training images', channel by channel: of all of them, or of
        as many, evenly spread, as make 256 MiB.

        Raises:
          ConfigError: samples that are no images, or smaller than the crop.
        """
        if not self.is_images:
            raise ConfigError(
                f"crop_size and standardize are for images, which {self.name} is not."
            )
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
    name: str = "arrays",
) -> Dataset:
    """A data set from the user's own arrays.

    Args:
      images: [N, ...]; integers in 0 … 255 are pixels, scaled to [0, 1] on the device;
        other numbers are taken as they are. Or a dict of such arrays (nested if need be), for
        samples of several parts or of another kind: there only uint8 are pixels, and other
        integers (tokens, categories) stay integers.
      labels: integers [N] in 0 … C − 1.
      test_images, test_labels: the test split; without them `test_fraction` of the samples
        is set aside, stratified by class and always the same.
      test_fraction: in (0, 1), by default 0.2; not beside a test split.
      num_classes: C; by default that of `class_names`, or the largest label plus one, and
        then every class must have samples.
      class_names: C names, by default the labels.
      name: for reports.

    Raises:
      ConfigError: shapes, dtypes or labels that do not fit, named.
    """
    images, labels = _checked(images, labels, "")
    if (test_images is None) != (test_labels is None):
        raise ConfigError("give both test_images and test_labels, or neither.")
    if test_images is not None:
        if test_fraction is not None:
            raise ConfigError("there is a test split already; leave test_fraction out.")
        test_images, test_labels = _checked(test_images, test_labels, "test_")
        _require_alike(test_images, images, "test_images", "images")
    if class_names is None:
        if num_classes is None:
            num_classes = _num_classes(labels, test_labels)
        class_names = tuple(map(str, range(num_classes)))
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
    if test_images is None:
        test_fraction = 0.2 if test_fraction is None else test_fraction
        train, test = _split(labels, test_fraction, class_names)
        images, test_images = select(images, train), select(images, test)
        labels, test_labels = labels[train], labels[test]
    return Dataset(
        name, images, labels, test_images, test_labels, classes, tuple(map(str, class_names))
    )


def _channel_statistics(images: Any) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation of each channel, pixels scaled to [0, 1]."""
    most = max(1, _MOST_BYTES // (int(np.prod(images.shape[1:])) * images.dtype.itemsize))
    rows = np.linspace(0, len(images) - 1, min(len(images), most)).astype(int)
    total, squares, pixels = 0.0, 0.0, 0
    for part in np.array_split(rows, -(-len(rows) // 1000)):
        values = np.asarray(scale(images[part]), np.float64)
        total += values.sum(axis=(0, 1, 2))
        squares += np.square(values).sum(axis=(0, 1, 2))
        pixels += values[..., 0].size
    mean = total / pixels
    std = np.sqrt(np.maximum(squares / pixels - np.square(mean), 1e-12))
    return tuple(np.atleast_1d(mean).tolist()), tuple(np.atleast_1d(std).tolist())


def _num_classes(labels: np.ndarray, test_labels: np.ndarray | None) -> int:
    """The largest label plus one, where each class up to there has training samples."""
    largest = int(max(values.max() for values in (labels, test_labels) if values is not None))
    present = set(np.unique(labels).tolist())
    missing = (label for label in range(largest + 1) if label not in present)
    first = list(itertools.islice(missing, 5))
    if first == [0]:
        raise ConfigError(
            f"labels lie in 1 … {largest} and none is 0: count classes from 0, or give num_classes if "
            "class 0 is meant to be empty."
        )
    if first and min(present) >= 0:
        raise ConfigError(
            f"of the classes 0 … {largest}, some have no training samples ({', '.join(map(str, first))}"
            " first); number classes without gaps, or give num_classes if they are meant to be empty."
        )
    return largest + 1


def _split(
    labels: np.ndarray, test_fraction: float, class_names: Sequence[str]
) -> tuple[np.ndarray, np.ndarray]:
    """Rows to train on and rows to test on, stratified by class and always the same."""
    if not 0 < test_fraction < 1:
        raise ConfigError(f"test_fraction must be in (0, 1), not {test_fraction}.")
    present, counts = np.unique(labels, return_counts=True)
    if counts.min() < 2:
        raise ConfigError(
            f"class {class_names[present[counts.argmin()]]} has one sample, but a stratified test "
            "split needs at least 2 of each class; add samples, or give a test split of your own."
        )
    from sklearn.model_selection import train_test_split  # takes a moment, and only this needs it

    try:
        train, test = train_test_split(
            np.arange(len(labels)), test_size=test_fraction, stratify=labels, random_state=0
        )
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


def _checked(images: Any, labels: Any, prefix: str) -> tuple[PyTree, np.ndarray]:
    several = isinstance(images, Mapping)
    if several:
        images = jax.tree.map(np.asarray, dict(images))
    elif not isinstance(images, LazyImages):
        images = np.asarray(images)
    labels = np.asarray(labels)
    named = [
        (prefix + "images" + jax.tree_util.keystr(path), leaf)
        for path, leaf in jax.tree.leaves_with_path(images)
    ]
    if not named:
        raise ConfigError(f"{prefix}images hold no array.")
    for name, leaf in named:
        if len(leaf.shape) < (1 if several else 2) or len(leaf) == 0:
            raise ConfigError(
                f"{name} must have shape [N, ...] with N > 0, not {list(leaf.shape)}."
            )
        if labels.shape != (len(leaf),):
            raise ConfigError(
                f"{prefix}labels must have shape [{len(leaf)}], one for each sample of {name}, "
                f"not {list(labels.shape)}."
            )
    if not np.issubdtype(labels.dtype, np.integer):
        raise ConfigError(f"{prefix}labels must be integers, not {labels.dtype}.")
    kept = [_stored(leaf, name, pixels=not several) for name, leaf in named]
    return jax.tree.unflatten(jax.tree.structure(images), kept), labels.astype(np.int32)


def _stored(values: Any, name: str, pixels: bool) -> Any:
    """An array in the type in which it is kept; `pixels`: whether small integers are some."""
    if values.dtype == np.uint8:
        return values
    if np.issubdtype(values.dtype, np.integer):
        if pixels:
            if values.min() >= 0 and values.max() <= 255:
                return values.astype(np.uint8)
            return values.astype(np.float32)
        if values.min() < -(2**31) or values.max() >= 2**31:
            raise ConfigError(f"{name} holds integers beyond 32 bits; number them anew.")
        return values.astype(np.int32)
    if not np.issubdtype(values.dtype, np.floating):
        raise ConfigError(f"{name} must be numbers, not {values.dtype}.")
    if not np.isfinite(values).all():
        raise ConfigError(f"{name} hold NaN or infinity; clean them first.")
    return values.astype(np.float32)


def take(inputs: PyTree, rows: np.ndarray) -> PyTree:
    """Rows, in an array of any shape, of samples on the host."""
    return jax.tree.map(lambda a: a[rows], inputs)


def select(inputs: PyTree, rows: np.ndarray) -> PyTree:
    """The same as `take`, but what is not read yet stays so."""
    return jax.tree.map(lambda a: a.select(rows) if isinstance(a, LazyImages) else a[rows], inputs)


def require_alike(data: Dataset, public: Dataset) -> None:
    """Raises `ConfigError` unless samples of both have the same shapes and types."""
    _require_alike(public.inputs, data.inputs, public.name, data.name)


def _require_alike(some: PyTree, others: PyTree, name: str, other_name: str) -> None:
    if _kinds(some) != _kinds(others):
        raise ConfigError(
            f"{name} hold {_shown_kinds(some)}, but {other_name} {_shown_kinds(others)}; make them "
            "alike (images of a folder are resized by image_size)."
        )


def _kinds(inputs: PyTree) -> PyTree:
    return jax.tree.map(lambda a: (a.dtype, a.shape[1:]), inputs)


def _shown_kinds(inputs: PyTree) -> str:
    return ", ".join(f"{a.dtype} of shape {list(a.shape[1:])}" for a in jax.tree.leaves(inputs))
