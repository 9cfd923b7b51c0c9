"""Reading of data sets that tensorflow-datasets has prepared on disk, without TensorFlow.

Samples are read by random access from array_record files and decoded once; the arrays are cached in
the user's cache folder for the next start. Data sets that do not fit in memory are decoded on each
access instead. `mhd prepare` prepares data sets.
"""

from __future__ import annotations

import functools
import hashlib
import os
import pathlib
import re
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from PIL import Image

from mhd_jax.core.commands import named, typed
from mhd_jax.core.errors import ConfigError
from mhd_jax.core.extras import require
from mhd_jax.core.files import expanded
from mhd_jax.data import image_folders
from mhd_jax.data.lazy_images import LazyImages, fits_in_memory

NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")  # a data set's name, with an optional config
_AT_ONCE = 1000  # records of one read
_AGAIN = f"prepare it again by {named('prepare')} with --overwrite"


def read(
    name: str,
    data_dir: str | os.PathLike[str] | None,
    train_split: str = "train",
    test_split: str = "test",
    image_size: int | None = None,
    in_memory: bool | None = None,
) -> dict[str, Any]:
    """Reads images, labels and class names of a prepared image classification data set.

    Args:
      name: the name in tensorflow-datasets, with an optional config ("imagenette/160px-v2").
      data_dir: the folder of prepared data sets; by default tensorflow-datasets' own folder.
      train_split, test_split: splits in tensorflow-datasets' notation: "train", "train[:20%]",
        "validation".
      image_size: the number of pixels to which the shorter side is resized, before the centre is
        cropped to a square; without it all images must have one size.
      in_memory: whether to read all images now, or each image when it is needed (`LazyImages`); by
        default all are read now if they fit in a quarter of the memory.

    Returns:
      "images", "labels", "test_images", "test_labels" and "class_names".

    Raises:
      ConfigError: the data set does not exist, lacks a split, is damaged, or its images have
        different shapes.
    """
    root = root_folder(data_dir)
    folder = newest_version(name, root)
    if folder is None:
        raise ConfigError(
            f"{name} is not prepared in {root}. Say where it is by data_dir, or prepare it there: "
            f"`{typed('prepare')} --dataset={name} --data_dir={root}`. "
            f"A folder of images is named by its path, like ./{name}."
        )
    image_folders.require_image_size(image_size)
    splits = {"": train_split, "test_": test_split}
    identity = _identity(folder, image_size, *splits.values())
    stored = _load(identity)
    if stored and in_memory is not False:
        return stored
    builder = open_folder(folder)
    records = {prefix: Records(builder, split, image_size) for prefix, split in splits.items()}
    shape = records[""].image_shape
    if in_memory is None:
        in_memory = fits_in_memory(sum(map(len, records.values())), shape)
    content: dict[str, Any] = {"class_names": records[""].class_names}
    if in_memory:
        for prefix, split in records.items():
            images, labels = split.read_all(shape)
            content |= {f"{prefix}images": images, f"{prefix}labels": labels}
        _save(identity, content)
        return content
    of_labels = f"labels {identity}"
    known = _load(of_labels)
    if not known:
        known = {f"{prefix}labels": split.read_labels() for prefix, split in records.items()}
        _save(of_labels, known)
    for prefix, split in records.items():
        content[f"{prefix}images"] = LazyImages(
            functools.partial(split.read_images, shape=shape),
            np.arange(len(split)),
            shape,
            repr((sorted((p.name, p.stat().st_size) for p in folder.iterdir()), splits[prefix])),
            split.keys(),
        )
    return content | known


def root_folder(data_dir: str | os.PathLike[str] | None) -> pathlib.Path:
    """Returns the folder of prepared data sets, by default tensorflow-datasets' own."""
    given = data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    return expanded(given)


def newest_version(name: str, root: pathlib.Path) -> pathlib.Path | None:
    """Returns the folder of a data set's newest prepared version; None if there is none.

    Folders whose names are not versions are remnants of interrupted preparations.
    """
    try:
        found = [path.parent for path in (root / name).glob("*/dataset_info.json")]
    except OSError:  # a name that no folder can have
        return None
    versions = [path for path in found if re.fullmatch(r"\d+\.\d+\.\d+", path.name)]
    return max(versions, key=lambda path: [int(n) for n in path.name.split(".")], default=None)


def open_folder(folder: pathlib.Path) -> Any:
    """Returns the builder of a prepared data set after checking all files' numbers of records.

    Raises:
      ConfigError: the data set is damaged, lacks random access, or is not for image classification.
    """
    tfds = require("tensorflow_datasets")  # slow to import, and only reading needs it

    try:
        builder = tfds.builder_from_directory(str(folder))
    except Exception as error:  # a damaged description may raise anything
        raise ConfigError(
            f"{folder} cannot be read as a prepared data set ({error}); {_AGAIN}."
        ) from error
    if builder.info.file_format != tfds.core.FileFormat.ARRAY_RECORD:
        raise ConfigError(
            f"{folder} was prepared as {builder.info.file_format.value}, which has no random access; "
            f"{_AGAIN}."
        )
    supervised(builder.info)
    for split in builder.info.splits.values():
        for path, expected in zip(split.filepaths, split.shard_lengths, strict=True):
            _check_file(path, expected)
    return builder


def supervised(info: Any) -> tuple[str, str]:
    """Returns the keys of a record's image and class label.

    Raises:
      ConfigError: the data set is not for image classification, or its pixels are not uint8.
    """
    tfds = require("tensorflow_datasets")

    keys, features = info.supervised_keys, info.features
    kinds = (tfds.features.Image, tfds.features.ClassLabel)
    if keys is None or not all(
        isinstance(key, str) and key in features and isinstance(features[key], kind)
        for key, kind in zip(keys, kinds, strict=False)
    ):
        raise ConfigError(
            f"{info.name} is not an image classification data set; choose one whose supervised keys "
            "are an image and a class label."
        )
    image_key, label_key = keys[:2]
    if features[image_key].np_dtype != np.uint8:
        raise ConfigError(
            f"the images of {info.name} are {np.dtype(features[image_key].np_dtype)}; only uint8 "
            "can be read."
        )
    return image_key, label_key


class Records:
    """Random access to the samples of one split, by their numbers.

    Args:
      builder: from `open_folder`.
      split: the split in tensorflow-datasets' notation.
      image_size: as for `read`.

    Raises:
      ConfigError: the split does not exist, or is empty.
    """

    def __init__(self, builder: Any, split: str, image_size: int | None = None):
        tfds = require("tensorflow_datasets")

        self._where = f"{builder.info.full_name}, split {split}"
        self._image_key, self._label_key = supervised(builder.info)
        self._image_feature = builder.info.features[self._image_key]
        self._label_feature = builder.info.features[self._label_key]
        self._image_size = image_size
        raw = tfds.decode.DeserializeMethod.RAW_BYTES
        try:
            self._source = builder.as_data_source(split=split, deserialize_method=raw)
            self._parts = builder.info.splits[split].file_instructions
        except (ValueError, KeyError) as error:
            raise ConfigError(f"{self._where}: {error}") from error
        if not len(self._source):
            raise ConfigError(f"{self._where} holds no samples; choose a larger part.")

    def __len__(self) -> int:
        return len(self._source)

    def keys(self) -> np.ndarray:
        """Returns a key for each sample, int64 [N], from its file and its place in the file."""
        return np.array(
            [
                hash((str(part.filename), place))
                for part in self._parts
                for place in range(
                    part.skip, part.examples_in_shard if part.take < 0 else part.skip + part.take
                )
            ],
            np.int64,
        )

    @property
    def class_names(self) -> np.ndarray:
        """The class names of the labels 0 … C − 1."""
        return np.array(self._label_feature.names)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """The shape [H, W, C] of the first sample's image, which all images must have."""
        return self.sample(0)[0].shape

    def sample(self, number: int) -> tuple[np.ndarray, int]:
        """Reads the image, uint8 [H, W, C], and the label of one sample."""
        ((image, label),) = self._decoded([number])
        return image, label

    def read_all(self, shape: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray]:
        """Reads all images, uint8 [N, H, W, C], and labels, int32 [N]."""
        images = np.empty((len(self), *shape), np.uint8)
        labels = np.empty(len(self), np.int32)
        for i, (image, label) in enumerate(self._decoded(range(len(self)))):
            images[i], labels[i] = self._of_shape(i, image, shape), label
        return images, labels

    def read_images(self, numbers: Sequence[int], shape: tuple[int, int, int]) -> np.ndarray:
        """Reads the images of the given samples, uint8 [n, H, W, C]."""
        images = np.empty((len(numbers), *shape), np.uint8)
        decoded = self._decoded(numbers)
        for i, (number, (image, _)) in enumerate(zip(numbers, decoded, strict=True)):
            images[i] = self._of_shape(number, image, shape)
        return images

    def read_labels(self) -> np.ndarray:
        """Reads all labels, int32 [N], without decoding images."""
        found = (self._label(number, values) for number, values in self._values(range(len(self))))
        return np.fromiter(found, np.int32, len(self))

    def _decoded(self, numbers: Sequence[int]) -> Iterator[tuple[np.ndarray, int]]:
        for number, values in self._values(numbers):
            try:
                image = self._image_feature.decode_example_np(
                    values[self._image_key].bytes_list.value[0]
                )
            except Exception as error:  # decoders have no common exception type
                raise self._damaged(number, error) from error
            declared = self._image_feature.shape
            if len(declared) != image.ndim or not all(
                expected in (None, found)
                for expected, found in zip(declared, image.shape, strict=True)
            ):
                raise ConfigError(
                    f"{self._where}: sample {number} has shape {list(image.shape)}, but the images "
                    f"should have {list(declared)}; {_AGAIN}."
                )
            if self._image_size is not None:
                image = _resized(image, self._image_size)
            yield image, self._label(number, values)

    def _values(self, numbers: Sequence[int]) -> Iterator[tuple[int, Any]]:
        """Yields each sample's number and its undecoded features by key."""
        from tensorflow_datasets.proto import tf_example_pb2

        for start in range(0, len(numbers), _AT_ONCE):
            part = list(numbers[start : start + _AT_ONCE])
            try:
                records = self._source.__getitems__(part)
            except Exception as error:  # readers have no common exception type
                raise ConfigError(
                    f"{self._where}: samples {min(part)} to {max(part)} cannot be read ({error}); "
                    f"{_AGAIN}."
                ) from error
            for number, record in zip(part, records, strict=True):
                try:
                    example = tf_example_pb2.Example.FromString(record)
                except Exception as error:
                    raise self._damaged(number, error) from error
                yield number, example.features.feature

    def _label(self, number: int, values: Any) -> int:
        try:
            label = values[self._label_key].int64_list.value[0]
        except IndexError as error:
            raise self._damaged(number, error) from error
        if not 0 <= label < self._label_feature.num_classes:
            raise ConfigError(
                f"{self._where}: sample {number} has the label {label}, but there are "
                f"{self._label_feature.num_classes} classes; choose a split that is labelled."
            )
        return label

    def _of_shape(self, number: int, image: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
        if image.shape != shape:
            raise ConfigError(
                f"{self._where}: sample {number} has shape {list(image.shape)}, but sample 0 "
                f"{list(shape)}; give image_size to bring all to one size."
            )
        return image

    def _damaged(self, number: int, error: Exception) -> ConfigError:
        return ConfigError(f"{self._where}: sample {number} cannot be decoded ({error}); {_AGAIN}.")


def _resized(image: np.ndarray, size: int) -> np.ndarray:
    grey = image.shape[2] == 1
    fitted = image_folders.fit(Image.fromarray(image[..., 0] if grey else image), size)
    return np.asarray(fitted).reshape(size, size, image.shape[2])


def _check_file(path: Any, expected: int) -> None:
    from array_record.python.array_record_module import ArrayRecordReader

    if not path.exists():
        raise ConfigError(f"{path} is missing; {_AGAIN}.")
    try:
        reader = ArrayRecordReader(str(path))
        found = reader.num_records()
        reader.close()
    except RuntimeError as error:
        raise ConfigError(f"{path} cannot be read ({error}); {_AGAIN}.") from error
    if found != expected:
        raise ConfigError(f"{path} holds {found} records instead of {expected}; {_AGAIN}.")


def _identity(folder: pathlib.Path, *options: Any) -> str:
    """Returns a text that identifies contents by folder, files' sizes and dates, and options."""
    files = sorted((p.name, p.stat().st_size, p.stat().st_mtime_ns) for p in folder.iterdir())
    return repr((str(folder.resolve()), files, options))


def _cache_file(identity: str) -> pathlib.Path:
    digest = hashlib.sha256(identity.encode()).hexdigest()[:24]
    root = expanded(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    return root / "mhd_jax" / "data" / f"{digest}.npz"


def _load(identity: str) -> dict[str, Any]:
    """Reads the cached arrays; returns {} if the cache file is missing or damaged."""
    try:
        with np.load(_cache_file(identity), allow_pickle=False) as stored:
            return dict(stored)
    except Exception:  # NumPy and zipfile raise many types
        return {}


def _save(identity: str, content: dict[str, Any]) -> None:
    """Writes arrays to the cache atomically; a cache that cannot be written is skipped."""
    path = _cache_file(identity)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
            written = pathlib.Path(scratch) / path.name
            np.savez(written, **content)
            os.replace(written, path)
    except OSError:
        return
