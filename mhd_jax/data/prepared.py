"""Data sets that tensorflow-datasets has prepared on disk, read without TensorFlow.

They are read by random access from array_record files, decoded once, and kept as plain arrays
in the user's cache folder, from which the next start takes them.
"""

from __future__ import annotations

import hashlib
import os
import pathlib
import tempfile
from collections.abc import Iterator
from typing import Any

import numpy as np

from mhd_jax.errors import ConfigError

_AT_ONCE = 1000  # records of one read


def read(
    name: str,
    data_dir: str | os.PathLike[str] | None,
    train_split: str = "train",
    test_split: str = "test",
) -> dict[str, Any]:
    """Images, labels and class names of a prepared image-classification data set.

    Args:
      name: as tensorflow-datasets calls it, with its config if it has any ("imagenette/160px-v2").
      data_dir: where it was prepared; by default tensorflow-datasets' own folder.
      train_split, test_split: in its notation: "train", "train[:20%]", "validation".

    Returns:
      "images", "labels", "test_images", "test_labels" and "class_names".

    Raises:
      ConfigError: it is not there, lacks a split, is damaged, or holds no images of one shape.
    """
    folder = _version_folder(name, data_dir)
    cache = _cache_file(folder, train_split, test_split)
    if cache.exists():
        with np.load(cache) as stored:
            return dict(stored)
    import tensorflow_datasets as tfds  # takes a moment, and only this function needs it

    try:
        builder = tfds.builder_from_directory(str(folder))
    except Exception as error:  # whatever a damaged description makes it raise
        raise ConfigError(f"{folder} cannot be read as a prepared data set: {error}") from error
    if builder.info.file_format != tfds.core.FileFormat.ARRAY_RECORD:
        raise ConfigError(
            f"{folder} was prepared as {builder.info.file_format.value}, which has no random access; "
            'prepare it with file_format="array_record".'
        )
    keys = builder.info.supervised_keys
    if keys is None or not hasattr(builder.info.features[keys[1]], "num_classes"):
        raise ConfigError(f"{name} is not a classification data set.")
    content: dict[str, Any] = {}
    for prefix, split in (("", train_split), ("test_", test_split)):
        images, labels = _read_split(builder, split, *keys[:2])
        content |= {f"{prefix}images": images, f"{prefix}labels": labels}
    content["class_names"] = np.array(builder.info.features[keys[1]].names)
    _write(cache, content)
    return content


def _version_folder(name: str, data_dir: str | os.PathLike[str] | None) -> pathlib.Path:
    root = pathlib.Path(
        data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    ).expanduser()
    found = [path.parent for path in (root / name).glob("*/dataset_info.json")]
    if not found:
        raise ConfigError(
            f"{name} is not prepared in {root}. Say where it is by data_dir, or prepare it there: "
            "`pip install tensorflow-cpu`, then in Python "
            f"`tensorflow_datasets.builder({name!r}, data_dir={str(root)!r}, "
            'file_format="array_record").download_and_prepare()`. '
            f"A folder of images is named by its path, like ./{name}."
        )
    return max(found, key=lambda path: [int(n) for n in path.name.split(".") if n.isdigit()])


def _read_split(
    builder: Any, split: str, image_key: str, label_key: str
) -> tuple[np.ndarray, np.ndarray]:
    where = f"{builder.info.full_name}, split {split}"
    try:
        expected = builder.info.splits[split].num_examples
        source = builder.as_data_source(split=split)
    except (ValueError, KeyError) as error:
        raise ConfigError(f"{where}: {error}") from error
    if len(source) != expected or not expected:
        raise ConfigError(
            f"{where} should hold {expected} samples, but there are {len(source)}; prepare it again."
        )
    images: np.ndarray | None = None
    labels = np.empty(expected, np.int32)
    for start, records in _chunks(source, expected, where):
        for i, record in enumerate(records, start):
            image = record[image_key]
            if images is None:
                images = np.empty((expected, *image.shape), np.uint8)
            if image.shape != images.shape[1:] or image.dtype != np.uint8:
                raise ConfigError(
                    f"{where}: sample {i} is {image.dtype} of shape {list(image.shape)}, but the first "
                    f"is uint8 of shape {list(images.shape[1:])}; images must be alike."
                )
            images[i], labels[i] = image, record[label_key]
    assert images is not None  # there is at least one sample
    return images, labels


def _chunks(source: Any, size: int, where: str) -> Iterator[tuple[int, list[Any]]]:
    for start in range(0, size, _AT_ONCE):
        stop = min(start + _AT_ONCE, size)
        try:
            yield start, source.__getitems__(list(range(start, stop)))
        except Exception as error:  # the readers have no exception of their own
            raise ConfigError(
                f"{where}: samples {start} to {stop - 1} cannot be read ({error}); the files are "
                "damaged, prepare them again."
            ) from error


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
