"""Data sets that tensorflow-datasets has prepared on disk, read without TensorFlow.

They are read by random access from array_record files, decoded once, and kept as plain arrays
in the user's cache folder, from which the next start takes them. `experiments.prepare_data`
prepares them.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import pathlib
import re
import tempfile
import zipfile
from collections.abc import Iterator
from typing import Any

import numpy as np

from mhd_jax.errors import ConfigError

NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")  # of a data set, with its config if it has any
_AT_ONCE = 1000  # records of one read
_AGAIN = "prepare it again by experiments.prepare_data with --overwrite"


def read(
    name: str,
    data_dir: str | os.PathLike[str] | None,
    train_split: str = "train",
    test_split: str = "test",
) -> dict[str, Any]:
    """Images, labels and class names of a prepared image classification data set.

    Args:
      name: as tensorflow-datasets calls it, with its config if it has any ("imagenette/160px-v2").
      data_dir: where it was prepared; by default tensorflow-datasets' own folder.
      train_split, test_split: in its notation: "train", "train[:20%]", "validation".

    Returns:
      "images", "labels", "test_images", "test_labels" and "class_names".

    Raises:
      ConfigError: it is not there, lacks a split, is damaged, or holds no images of one shape.
    """
    root = root_folder(data_dir)
    folder = newest_version(name, root)
    if folder is None:
        raise ConfigError(
            f"{name} is not prepared in {root}. Say where it is by data_dir, or prepare it there: "
            f"`python -m experiments.prepare_data --dataset={name} --data_dir={root}`. "
            f"A folder of images is named by its path, like ./{name}."
        )
    cache = _cache_file(folder, train_split, test_split)
    no_cache = (OSError, EOFError, ValueError, zipfile.BadZipFile)  # not there, or damaged
    with contextlib.suppress(*no_cache), np.load(cache) as stored:
        return dict(stored)
    builder = open_folder(folder)
    content: dict[str, Any] = {}
    for prefix, split in (("", train_split), ("test_", test_split)):
        images, labels = _read_split(builder, split)
        content |= {f"{prefix}images": images, f"{prefix}labels": labels}
    _, label_key = supervised(builder.info)
    content["class_names"] = np.array(builder.info.features[label_key].names)
    _write(cache, content)
    return content


def root_folder(data_dir: str | os.PathLike[str] | None) -> pathlib.Path:
    """Where prepared data sets are; by default tensorflow-datasets' own folder."""
    given = data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    return pathlib.Path(given).expanduser()


def newest_version(name: str, root: pathlib.Path) -> pathlib.Path | None:
    """The folder of a data set's newest prepared version, None if there is none.

    Folders of other names are what an interrupted preparation left.
    """
    found = [path.parent for path in (root / name).glob("*/dataset_info.json")]
    versions = [path for path in found if re.fullmatch(r"\d+\.\d+\.\d+", path.name)]
    return max(versions, key=lambda path: [int(n) for n in path.name.split(".")], default=None)


def open_folder(folder: pathlib.Path) -> Any:
    """The builder of a prepared data set, of which every file is there with all its records.

    Raises:
      ConfigError: it is damaged, has no random access, or is not for image classification.
    """
    import tensorflow_datasets as tfds  # takes a moment, and only reading needs it

    try:
        builder = tfds.builder_from_directory(str(folder))
    except Exception as error:  # whatever a damaged description makes it raise
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
    """The keys of a record's image and class label.

    Raises:
      ConfigError: the data set is not for image classification, or its pixels are not uint8.
    """
    import tensorflow_datasets as tfds

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


def samples(builder: Any, split: str) -> Iterator[tuple[np.ndarray, int]]:
    """Images, uint8 [height, width, channels], and labels of a split, in order.

    Raises:
      ConfigError: there is no such split, or a record cannot be read; the message says which.
    """
    import tensorflow_datasets as tfds
    from tensorflow_datasets.proto import tf_example_pb2

    where = f"{builder.info.full_name}, split {split}"
    image_key, label_key = supervised(builder.info)
    decode = builder.info.features[image_key].decode_example_np
    raw = tfds.decode.DeserializeMethod.RAW_BYTES
    try:
        source = builder.as_data_source(split=split, deserialize_method=raw)
    except (ValueError, KeyError) as error:
        raise ConfigError(f"{where}: {error}") from error
    for i, record in enumerate(_records(source, where)):
        try:
            values = tf_example_pb2.Example.FromString(record).features.feature
            image = decode(values[image_key].bytes_list.value[0])
            label = values[label_key].int64_list.value[0]
        except Exception as error:  # decoders have no exception of their own
            raise ConfigError(
                f"{where}: sample {i} cannot be decoded ({error}); {_AGAIN}."
            ) from error
        yield image, label


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


def _read_split(builder: Any, split: str) -> tuple[np.ndarray, np.ndarray]:
    where = f"{builder.info.full_name}, split {split}"
    image_key, label_key = supervised(builder.info)
    declared = builder.info.features[image_key].shape
    num_classes = builder.info.features[label_key].num_classes
    images = labels = np.empty(0)
    for i, (image, label) in enumerate(samples(builder, split)):
        if i == 0:
            size = builder.info.splits[split].num_examples
            images = np.empty((size, *image.shape), np.uint8)
            labels = np.empty(size, np.int32)
            if len(declared) != image.ndim or not all(
                expected in (None, found)
                for expected, found in zip(declared, image.shape, strict=True)
            ):
                raise ConfigError(
                    f"{where}: sample 0 has shape {list(image.shape)}, but the images should have "
                    f"{list(declared)}; {_AGAIN}."
                )
        if image.shape != images.shape[1:]:
            raise ConfigError(
                f"{where}: sample {i} has shape {list(image.shape)}, but sample 0 "
                f"{list(images.shape[1:])}; choose a data set whose images are of one size."
            )
        if not 0 <= label < num_classes:
            raise ConfigError(
                f"{where}: sample {i} has the label {label}, but there are {num_classes} classes; "
                "choose a split that is labelled."
            )
        images[i], labels[i] = image, label
    if not len(images):
        raise ConfigError(f"{where} holds no samples; choose a larger part.")
    return images, labels


def _records(source: Any, where: str) -> Iterator[bytes]:
    for start in range(0, len(source), _AT_ONCE):
        stop = min(start + _AT_ONCE, len(source))
        try:
            records = source.__getitems__(list(range(start, stop)))
        except Exception as error:  # the readers have no exception of their own
            raise ConfigError(
                f"{where}: samples {start} to {stop - 1} cannot be read ({error}); {_AGAIN}."
            ) from error
        yield from records


def _cache_file(folder: pathlib.Path, *splits: str) -> pathlib.Path:
    """Named by the place, the content's size and dates, and the splits."""
    files = sorted((p.name, p.stat().st_size, p.stat().st_mtime_ns) for p in folder.iterdir())
    identity = repr((str(folder.resolve()), files, splits))
    digest = hashlib.sha256(identity.encode()).hexdigest()[:24]
    root = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    return root / "mhd_jax" / "data" / f"{digest}.npz"


def _write(path: pathlib.Path, content: dict[str, Any]) -> None:
    """Whole or not at all; a cache that cannot be written is done without."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
            written = pathlib.Path(scratch) / path.name
            np.savez(written, **content)
            os.replace(written, path)
    except OSError:
        return
