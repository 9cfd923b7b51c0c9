"""Where samples come from: the embedded digits, prepared data sets, the user's own arrays."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from mhd_jax.data import prepared
from mhd_jax.errors import ConfigError

EMBEDDED = ("digits",)
_OF_PREPARED = {"data_dir", "train_split", "test_split"}


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """A labelled classification data set with its test split.

    Attributes:
      name: for reports.
      inputs: training samples, uint8 or float32 [N, ...].
      labels: int32 [N] in 0 … C − 1.
      test_inputs, test_labels: the same for the test split.
      num_classes: C.
      class_names: C names.
    """

    name: str
    inputs: np.ndarray
    labels: np.ndarray
    test_inputs: np.ndarray
    test_labels: np.ndarray
    num_classes: int
    class_names: tuple[str, ...]

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one sample."""
        return self.inputs.shape[1:]


def load(source: Any = "digits", **options: Any) -> Dataset:
    """Loads a data set by name, or takes arrays.

    Arrays come as `(images, labels)`, or with a test split as
    `((images, labels), (test_images, test_labels))`.

    "digits" is scikit-learn's 1,797 handwritten digits, 8 × 8, with a fixed stratified test
    split of 360. Other names are those of tensorflow-datasets, prepared before
    (`experiments.prepare_data`).

    Args:
      source: a name, or arrays.
      **options: `data_dir`, `train_split` and `test_split` of a prepared data set (see
        `mhd_jax.data.prepared.read`), else those of `arrays`.

    Raises:
      ConfigError: an unknown name, or arrays that do not fit.
    """
    if isinstance(source, Dataset):
        return source
    if isinstance(source, tuple | list) and len(source) == 2:
        train, test = source
        if isinstance(train, tuple) and isinstance(test, tuple):
            return arrays(*train, *test, **options)
        return arrays(train, test, **options)
    if source == "digits":
        foreign = options.keys() & _OF_PREPARED
        if foreign:
            raise ConfigError(
                f"{', '.join(sorted(foreign))} belong to prepared data sets, not to digits; "
                "leave them out, or choose another dataset."
            )
        digits = load_digits()
        images = (digits.images / 16).astype(np.float32)[..., None]
        return arrays(images, digits.target, name="digits", **options)
    if not isinstance(source, str) or not prepared.NAME.fullmatch(source):
        raise ConfigError(
            f"unknown dataset {_shown(source)}; choose {', '.join(EMBEDDED)} or a name of "
            "tensorflow-datasets, or give your own (images, labels) arrays."
        )
    unknown = options.keys() - _OF_PREPARED
    if unknown:
        raise ConfigError(
            f"a prepared data set takes data_dir, train_split and test_split, not "
            f"{', '.join(sorted(unknown))}."
        )
    found = prepared.read(source, **{"data_dir": None, **options})
    class_names = tuple(map(str, found.pop("class_names")))
    data = arrays(**found, num_classes=len(class_names), name=source)
    return dataclasses.replace(data, class_names=class_names)


def arrays(
    images: Any,
    labels: Any,
    test_images: Any = None,
    test_labels: Any = None,
    *,
    test_fraction: float = 0.2,
    num_classes: int | None = None,
    name: str = "arrays",
) -> Dataset:
    """A data set from the user's own arrays.

    Args:
      images: [N, ...]; integers in 0 … 255 are pixels, scaled to [0, 1] on the device;
        other numbers are taken as they are.
      labels: integers [N] in 0 … C − 1.
      test_images, test_labels: the test split; without them `test_fraction` of the samples
        is set aside, stratified by class and always the same.
      test_fraction: in (0, 1).
      num_classes: C, by default the largest label plus one.
      name: for reports.

    Raises:
      ConfigError: shapes, dtypes or labels that do not fit, named.
    """
    images, labels = _checked(images, labels, "")
    if (test_images is None) != (test_labels is None):
        raise ConfigError("give both test_images and test_labels, or neither.")
    if test_images is None:
        if not 0 < test_fraction < 1:
            raise ConfigError(f"test_fraction must be in (0, 1), not {test_fraction}.")
        try:
            train, test = train_test_split(
                np.arange(len(labels)), test_size=test_fraction, stratify=labels, random_state=0
            )
        except ValueError as error:
            raise ConfigError(f"cannot set aside a stratified test split: {error}") from error
        images, labels, test_images, test_labels = (
            images[train],
            labels[train],
            images[test],
            labels[test],
        )
    else:
        test_images, test_labels = _checked(test_images, test_labels, "test_")
        if test_images.shape[1:] != images.shape[1:] or test_images.dtype != images.dtype:
            raise ConfigError(
                f"test_images hold {test_images.dtype} of shape {list(test_images.shape[1:])}, but "
                f"images {images.dtype} of shape {list(images.shape[1:])}; make them alike."
            )
    classes = num_classes or int(max(labels.max(), test_labels.max())) + 1
    for which, values in (("labels", labels), ("test_labels", test_labels)):
        if values.min() < 0 or values.max() >= classes:
            raise ConfigError(
                f"{which} must lie in 0 … {classes - 1}, but they span "
                f"{values.min()} … {values.max()}; count classes from 0."
            )
    if classes < 2:
        raise ConfigError("there is only one class; classification needs at least 2.")
    return Dataset(
        name, images, labels, test_images, test_labels, classes, tuple(map(str, range(classes)))
    )


def _checked(images: Any, labels: Any, prefix: str) -> tuple[np.ndarray, np.ndarray]:
    images, labels = np.asarray(images), np.asarray(labels)
    if images.ndim < 2 or len(images) == 0:
        raise ConfigError(
            f"{prefix}images must have shape [N, ...] with N > 0, not {list(images.shape)}."
        )
    if labels.shape != (len(images),):
        raise ConfigError(
            f"{prefix}labels must have shape [{len(images)}], one for each sample, "
            f"not {list(labels.shape)}."
        )
    if not np.issubdtype(labels.dtype, np.integer):
        raise ConfigError(f"{prefix}labels must be integers, not {labels.dtype}.")
    whole = np.issubdtype(images.dtype, np.integer)
    if whole and images.dtype != np.uint8 and images.min() >= 0 and images.max() <= 255:
        images = images.astype(np.uint8)  # pixels, whatever their type
    if images.dtype != np.uint8:
        if not (whole or np.issubdtype(images.dtype, np.floating)):
            raise ConfigError(f"{prefix}images must be numbers, not {images.dtype}.")
        images = images.astype(np.float32)
        if not np.isfinite(images).all():
            raise ConfigError(f"{prefix}images hold NaN or infinity; clean them first.")
    return images, labels.astype(np.int32)


def _shown(source: Any) -> str:
    return repr(source) if isinstance(source, str) else f"of type {type(source).__name__}"
