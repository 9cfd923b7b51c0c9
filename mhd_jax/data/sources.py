"""Where samples come from: the embedded digits, prepared data sets, one's own files or arrays."""

from __future__ import annotations

import dataclasses
import itertools
import os
import pathlib
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from mhd_jax.data import folders, npz, prepared
from mhd_jax.errors import ConfigError

EMBEDDED = ("digits",)
_OF_PREPARED = ("data_dir", "train_split", "test_split")
_PREPARED_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")


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
    """Loads a data set by name or path, or takes arrays.

    Arrays come as `(images, labels)`, or with a test split as
    `((images, labels), (test_images, test_labels))`.

    "digits" is scikit-learn's 1,797 handwritten digits, 8 × 8, with a fixed stratified test
    split of 360. Other names are those of tensorflow-datasets, prepared before.

    A path leads to a folder of images (see `mhd_jax.data.folders`) or to an `.npz` file (see
    `mhd_jax.data.npz`). A plain word is always a name: write the folder `digits` of the
    working directory as "./digits", or as a `pathlib.Path`.

    Args:
      source: a name, a path, or arrays.
      **options: of a prepared data set, `data_dir`, `train_split` and `test_split` (see
        `mhd_jax.data.prepared.read`); of a folder, `image_size` and `channels` (see
        `mhd_jax.data.folders.read`); of all but prepared data sets, `test_fraction`, and of
        arrays and files, `num_classes` (see `arrays`); of arrays, also `class_names` and `name`.

    Raises:
      ConfigError: an unknown name, a path that leads nowhere, content that does not fit, or
        options of another kind of source.
    """
    if isinstance(source, Dataset):
        _refuse_foreign(options, "a loaded data set")
        return source
    if isinstance(source, tuple | list) and len(source) == 2:
        _refuse_foreign(options, "arrays", "test_fraction", "num_classes", "class_names", "name")
        train, test = source
        if isinstance(train, tuple) and isinstance(test, tuple):
            return arrays(*train, *test, **options)
        return arrays(train, test, **options)
    if source == "digits":
        _refuse_foreign(options, "digits", "test_fraction")
        digits = load_digits()
        images = (digits.images / 16).astype(np.float32)[..., None]
        return arrays(images, digits.target, name="digits", **options)
    if _is_path(source, options):
        return _from_path(pathlib.Path(source).expanduser(), options)
    if not isinstance(source, str) or not _PREPARED_NAME.fullmatch(source):
        raise ConfigError(
            f"unknown dataset {_shown(source)}; choose {', '.join(EMBEDDED)} or a name of "
            "tensorflow-datasets, or give your own: the path of a folder of images or of an .npz "
            "file, like ./name, or (images, labels) arrays."
        )
    _refuse_foreign(options, "a prepared data set", *_OF_PREPARED)
    return arrays(**prepared.read(source, **{"data_dir": None, **options}), name=source)


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
        other numbers are taken as they are.
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
        if test_images.shape[1:] != images.shape[1:] or test_images.dtype != images.dtype:
            raise ConfigError(
                f"test_images hold {test_images.dtype} of shape {list(test_images.shape[1:])}, but "
                f"images {images.dtype} of shape {list(images.shape[1:])}; make them alike."
            )
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
        images, test_images = images[train], images[test]
        labels, test_labels = labels[train], labels[test]
    return Dataset(
        name, images, labels, test_images, test_labels, classes, tuple(map(str, class_names))
    )


def _from_path(path: pathlib.Path, options: dict[str, Any]) -> Dataset:
    if path.is_dir():
        _refuse_foreign(options, "a folder of images", "image_size", "channels", "test_fraction")
        own = {key: options.pop(key) for key in ("image_size", "channels") if key in options}
        return arrays(**folders.read(path, **own), **options, name=path.resolve().name)
    if not path.exists():
        raise ConfigError(f"{path} does not exist; give a folder of images or an .npz file.")
    if path.suffix != ".npz":
        raise ConfigError(f"{path} is neither a folder of images nor an .npz file.")
    _refuse_foreign(options, "an .npz file", "test_fraction", "num_classes")
    return arrays(**npz.read(path), **options, name=path.name)


def _is_path(source: Any, options: dict[str, Any]) -> bool:
    """Whether files are meant; names of tensorflow-datasets may have one slash too."""
    if not isinstance(source, str):
        return isinstance(source, os.PathLike)
    if source.endswith(".npz"):
        return True
    if not _PREPARED_NAME.fullmatch(source):
        return "/" in source
    return (
        "/" in source and pathlib.Path(source).exists() and not options.keys() & set(_OF_PREPARED)
    )


def _refuse_foreign(options: dict[str, Any], source: str, *known: str) -> None:
    foreign = sorted(options.keys() - set(known))
    if foreign:
        raise ConfigError(
            f"{', '.join(foreign)} cannot go with {source}, which takes "
            f"{', '.join(known) or 'no options'}; leave out what does not apply, or choose another "
            "dataset."
        )


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
    if np.issubdtype(images.dtype, np.integer) and images.min() >= 0 and images.max() <= 255:
        images = images.astype(np.uint8)  # pixels, whatever their type
    if images.dtype != np.uint8:
        if not (
            np.issubdtype(images.dtype, np.floating) or np.issubdtype(images.dtype, np.integer)
        ):
            raise ConfigError(f"{prefix}images must be numbers, not {images.dtype}.")
        images = images.astype(np.float32)
        if not np.isfinite(images).all():
            raise ConfigError(f"{prefix}images hold NaN or infinity; clean them first.")
    return images, labels.astype(np.int32)


def _shown(source: Any) -> str:
    return repr(source) if isinstance(source, str) else f"of type {type(source).__name__}"
